"""Train in one thread beside the server, one job at a time; the newest request comes first."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from oneway.errors import OnewayError
from oneway.playground.session import KEPT, Finding, Session
from oneway.playground.settings import Setting

State = Literal["none", "waiting", "working", "done", "superseded", "failed"]


@dataclass(frozen=True)
class Progress:
    """The progress of an examination.

    Attributes:
        state: ``"superseded"``: another setting was requested before this one was done.
        stage: The stage under way, in words; or the error.
        share: Of the stage, from 0 to 1.
        finding: The newest finding about a setting; None: there is none yet.
    """

    state: State
    stage: str = ""
    share: float = 0.0
    finding: Finding | None = None


class _SupersededError(Exception):
    """Ends a job from its progress report: nobody waits for it."""


@dataclass
class _Job:
    setting: Setting
    future: Future[None] | None = None
    superseded: bool = False
    stage: str = ""
    share: float = 0.0


class Worker:
    """Prepares a session, then examines the settings that are requested.

    All of it runs on one thread, so that the other cores stay free for answers.
    """

    def __init__(self, prepare: Callable[[], Session]) -> None:
        """Begin to prepare.

        Args:
            prepare: Builds the session.
        """
        self._lock = threading.Lock()
        self._closing = False
        self._findings: dict[Setting, Finding] = {}
        self._job: _Job | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="oneway-playground")
        self.prepared: Future[Session] = self._executor.submit(prepare)

    @property
    def session(self) -> Session | None:
        """The session, once it is ready."""
        ready = self.prepared.done() and not self.prepared.cancelled()
        return self.prepared.result() if ready and self.prepared.exception() is None else None

    @property
    def failure(self) -> str:
        """Why the session could not be prepared; empty: it is prepared, or will be."""
        done = self.prepared.done() and not self.prepared.cancelled()
        error = self.prepared.exception() if done else None
        return "" if error is None else _text(error)

    def enqueue(self, setting: Setting) -> None:
        """Examine a setting next; cancel the examination of any other setting.

        Does nothing if the setting is done, or under way already.
        """
        with self._lock:
            job, finding = self._job, self._findings.get(setting)
            if self._closing or (finding is not None and finding.retrained is not None):
                return
            if job is not None and not job.superseded:
                if job.setting == setting and job.future is not None and not job.future.done():
                    return
                job.superseded = True
            self._job = job = _Job(setting)
            job.future = self._executor.submit(self._examine, job)

    def progress(self, setting: Setting) -> Progress:
        """Return the progress of a setting's examination."""
        with self._lock:
            job, finding = self._job, self._findings.get(setting)
            if finding is not None and finding.retrained is not None:
                return Progress("done", share=1.0, finding=finding)
            if job is None or job.setting != setting or job.future is None:
                return Progress("none" if finding is None else "superseded", finding=finding)
            if not job.future.done():
                state: State = "working" if job.stage else "waiting"
                return Progress(state, job.stage, job.share, finding)
            error = None if job.future.cancelled() else job.future.exception()
            return Progress("failed", "" if error is None else _text(error), finding=finding)

    def finding(self, setting: Setting) -> Finding | None:
        """Return the newest finding about a setting, or None."""
        with self._lock:
            return self._findings.get(setting)

    def close(self) -> None:
        """Stop: a job under way ends at its next progress report."""
        with self._lock:
            self._closing = True
            if self._job is not None:
                self._job.superseded = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _examine(self, job: _Job) -> None:
        session = self.session
        if session is None:
            return

        def report(stage: str, share: float) -> None:
            if job.superseded:
                raise _SupersededError
            job.stage, job.share = stage, share

        try:
            report("begin", 0.0)
            for finding in session.examine(job.setting, report):
                with self._lock:
                    self._findings.pop(job.setting, None)
                    self._findings[job.setting] = finding
                    while len(self._findings) > KEPT:
                        del self._findings[next(iter(self._findings))]
        except _SupersededError:
            return


def _text(error: BaseException) -> str:
    """Return the text of an error of oneway, which holds no value of a query; else its type."""
    return str(error) if isinstance(error, OnewayError) else type(error).__name__
