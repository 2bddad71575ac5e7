"""One thread that trains beside the server, one job at a time: the newest wish wins."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from oneway.data import ProgressCallback
from oneway.errors import OnewayError
from oneway.playground.settings import Setting
from oneway.playground.study import KEPT, Finding, Study

State = Literal["none", "waiting", "working", "done", "superseded", "failed"]


@dataclass(frozen=True)
class Progress:
    """How far something is.

    Attributes:
        state: ``"superseded"``: another setting was asked for before this one was done.
        stage: What is being done, in words; or what failed.
        share: From 0 to 1: of the stage, or of all stages while a study is prepared.
        finding: What is known so far, of a setting; None: nothing.
    """

    state: State
    stage: str = ""
    share: float = 0.0
    finding: Finding | None = None


class _SupersededError(Exception):
    """Ends a job from its report: nobody waits for it."""


@dataclass
class _Job:
    setting: Setting
    future: Future[None] | None = None
    superseded: bool = False
    stage: str = ""
    share: float = 0.0


class Workshop:
    """Prepares a study, then examines the settings that are wished for.

    What it computes, it computes on a single thread of its own, so that whoever answers requests
    meanwhile finds the other cores free.
    """

    def __init__(self, prepare: Callable[[ProgressCallback], Study], stages: int = 1) -> None:
        """Begin to prepare.

        Args:
            prepare: Makes the study; told whom to report to.
            stages: How many it will report.
        """
        self._stages, self._begun = stages, 0
        self._lock = threading.Lock()
        self._closing = False
        self._preparing = Progress("waiting")
        self._findings: dict[Setting, Finding] = {}
        self._job: _Job | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="oneway-workshop")
        self.prepared: Future[Study] = self._executor.submit(prepare, self._report_preparing)

    @property
    def study(self) -> Study | None:
        """The study, once it is ready."""
        ready = self.prepared.done() and not self.prepared.cancelled()
        return self.prepared.result() if ready and self.prepared.exception() is None else None

    @property
    def preparing(self) -> Progress:
        """How far the study is."""
        if not self.prepared.done():
            return self._preparing
        if self.prepared.cancelled():
            return Progress("superseded")
        error = self.prepared.exception()
        return Progress("done", share=1.0) if error is None else Progress("failed", _told(error))

    def wish(self, setting: Setting) -> None:
        """Have a setting examined next, in place of any other that is not done.

        Nothing happens if it is done, or under way already.
        """
        with self._lock:
            job, found = self._job, self._findings.get(setting)
            if self._closing or (found is not None and found.retrained is not None):
                return
            if job is not None and not job.superseded:
                if job.setting == setting and job.future is not None and not job.future.done():
                    return
                job.superseded = True
            self._job = job = _Job(setting)
            job.future = self._executor.submit(self._examine, job)

    def progress(self, setting: Setting) -> Progress:
        """Say how far the examination of a setting is."""
        with self._lock:
            job, found = self._job, self._findings.get(setting)
            if found is not None and found.retrained is not None:
                return Progress("done", share=1.0, finding=found)
            if job is None or job.setting != setting or job.future is None:
                return Progress("none" if found is None else "superseded", finding=found)
            if not job.future.done():
                state: State = "working" if job.stage else "waiting"
                return Progress(state, job.stage, job.share, found)
            error = None if job.future.cancelled() else job.future.exception()
            return Progress("failed", "" if error is None else _told(error), finding=found)

    def finding(self, setting: Setting) -> Finding | None:
        """Return what is known of a setting; None: nothing."""
        with self._lock:
            return self._findings.get(setting)

    def close(self) -> None:
        """End: what is under way is called off at its next report."""
        with self._lock:
            self._closing = True
            if self._job is not None:
                self._job.superseded = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _report_preparing(self, stage: str, share: float) -> None:
        if self._closing:
            raise _SupersededError
        self._begun += stage != self._preparing.stage
        done = min(1.0, (self._begun - 1 + share) / self._stages)
        self._preparing = Progress("working", stage, done)

    def _examine(self, job: _Job) -> None:
        study = self.study
        if study is None:
            return

        def report(stage: str, share: float) -> None:
            if job.superseded:
                raise _SupersededError
            job.stage, job.share = stage, share

        try:
            report("begin", 0.0)
            for finding in study.examine(job.setting, report):
                with self._lock:
                    self._findings.pop(job.setting, None)
                    self._findings[job.setting] = finding
                    while len(self._findings) > KEPT:
                        del self._findings[next(iter(self._findings))]
        except _SupersededError:
            return


def _told(error: BaseException) -> str:
    """Return an error's text if it was raised on purpose: then it holds no value of a query."""
    return str(error) if isinstance(error, OnewayError) else type(error).__name__
