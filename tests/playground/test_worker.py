"""The newest request wins, one job at a time; a failure is reported and stops nothing else."""

import threading
from types import SimpleNamespace

import pytest

from oneway.errors import InvalidOptionError
from oneway.playground import Worker
from oneway.playground.settings import all_settings
from playground.planted import PATIENCE, default_setting

ROUNDED = all_settings("rounding")


class Scripted:
    """A session whose examinations go on when they are told to."""

    def __init__(self):
        self.begun = {setting: threading.Event() for setting in ROUNDED}
        self.go = {setting: threading.Event() for setting in ROUNDED}
        self.ended, self.error = [], None

    def examine(self, setting, report):
        report("release", 0.5)
        yield SimpleNamespace(retrained=None)
        self.begun[setting].set()
        assert self.go[setting].wait(PATIENCE)
        report("train", 0.5)
        if self.error is not None:
            raise self.error
        self.ended.append(setting)
        yield SimpleNamespace(retrained="decoder")


@pytest.fixture
def session():
    return Scripted()


@pytest.fixture
def worker(session):
    started = Worker(lambda: session)
    started.prepared.result(PATIENCE)
    yield started
    for event in session.go.values():
        event.set()
    started.close()


def finish(worker):
    worker._job.future.exception(PATIENCE)


def test_a_setting_goes_from_nothing_over_what_is_known_early_to_done(worker, session):
    setting = ROUNDED[0]
    assert worker.progress(setting).state == "none"
    worker.enqueue(setting)
    assert session.begun[setting].wait(PATIENCE)
    early = worker.progress(setting)
    assert (early.state, early.stage) == ("working", "release")
    assert early.finding.retrained is None
    session.go[setting].set()
    finish(worker)
    done = worker.progress(setting)
    assert (done.state, done.finding.retrained) == ("done", "decoder")
    assert worker.finding(setting) is done.finding


def test_the_newest_setting_wins_and_the_one_before_is_called_off(worker, session):
    first, second, third = ROUNDED[:3]
    worker.enqueue(first)
    assert session.begun[first].wait(PATIENCE)
    worker.enqueue(second)
    worker.enqueue(third)
    assert worker.progress(first).state == "superseded"
    assert worker.progress(second).state == "none"
    assert worker.progress(third).state == "waiting"
    for setting in (first, second, third):
        session.go[setting].set()
    finish(worker)
    assert session.ended == [third]
    assert not session.begun[second].is_set()


def test_the_same_setting_again_neither_restarts_nor_repeats(worker, session):
    setting = ROUNDED[0]
    worker.enqueue(setting)
    assert session.begun[setting].wait(PATIENCE)
    job = worker._job
    worker.enqueue(setting)
    assert worker._job is job
    session.go[setting].set()
    finish(worker)
    worker.enqueue(setting)
    assert worker._job is job
    assert session.ended == [setting]


def test_a_setting_that_was_called_off_can_be_enqueued_again(worker, session):
    first, second = ROUNDED[:2]
    worker.enqueue(first)
    assert session.begun[first].wait(PATIENCE)
    worker.enqueue(second)
    worker.enqueue(first)
    session.go[first].set()
    finish(worker)
    assert session.ended == [first]
    assert worker.progress(first).state == "done"


def test_a_failure_is_reported_and_the_next_setting_is_examined(worker, session):
    for setting in ROUNDED:
        session.go[setting].set()
    for number, (error, text) in enumerate(
        (
            (InvalidOptionError("too few. Pass more."), "too few. Pass more."),
            (KeyError("a value of a query"), "KeyError"),
        )
    ):
        failing, next_setting = ROUNDED[2 * number : 2 * number + 2]
        session.error = error
        worker.enqueue(failing)
        finish(worker)
        failed = worker.progress(failing)
        assert (failed.state, failed.stage) == ("failed", text)
        session.error = None
        worker.enqueue(next_setting)
        finish(worker)
        assert worker.progress(next_setting).state == "done"


def test_a_session_that_cannot_be_prepared_says_why():
    def prepare():
        raise InvalidOptionError("no digits. Fetch them.")

    worker = Worker(prepare)
    with pytest.raises(InvalidOptionError):
        worker.prepared.result(PATIENCE)
    assert worker.session is None
    assert worker.failure == "no digits. Fetch them."
    worker.close()


def test_of_many_findings_the_newest_are_kept(worker, session):
    for event in session.go.values():
        event.set()
    session.begun = session.go = {
        setting: threading.Event() for setting in all_settings("adversarial-noise")
    }
    for event in session.go.values():
        event.set()
    several = all_settings("adversarial-noise")[:70]
    for setting in several:
        worker.enqueue(setting)
        finish(worker)
    kept = [setting for setting in several if worker.finding(setting) is not None]
    assert kept == several[-64:]


def test_a_closed_worker_takes_no_setting(session):
    worker = Worker(lambda: session)
    worker.prepared.result(PATIENCE)
    worker.close()
    worker.enqueue(default_setting("rounding"))
    assert worker.progress(default_setting("rounding")).state == "none"
