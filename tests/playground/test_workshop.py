"""The newest wish wins, one job at a time; whatever fails is told and takes nothing down."""

import threading
from types import SimpleNamespace

import pytest

from oneway.errors import InvalidOptionError
from oneway.playground import Workshop
from oneway.playground.settings import all_settings, default_setting

ROUNDED = all_settings("rounding")


class Scripted:
    """A study whose examinations go on when they are told to."""

    def __init__(self):
        self.begun = {setting: threading.Event() for setting in ROUNDED}
        self.go = {setting: threading.Event() for setting in ROUNDED}
        self.ended, self.error = [], None

    def examine(self, setting, report):
        report("release", 0.5)
        yield SimpleNamespace(retrained=None)
        self.begun[setting].set()
        assert self.go[setting].wait(30)
        report("train", 0.5)
        if self.error is not None:
            raise self.error
        self.ended.append(setting)
        yield SimpleNamespace(retrained="decoder")


@pytest.fixture
def study():
    return Scripted()


@pytest.fixture
def workshop(study):
    made = Workshop(lambda _: study)
    made.prepared.result(30)
    yield made
    for event in study.go.values():
        event.set()
    made.close()


def finish(workshop):
    workshop._job.future.exception(30)


def test_a_wish_goes_from_nothing_over_what_is_known_early_to_done(workshop, study):
    setting = ROUNDED[0]
    assert workshop.progress(setting).state == "none"
    workshop.wish(setting)
    assert study.begun[setting].wait(30)
    early = workshop.progress(setting)
    assert (early.state, early.stage) == ("working", "release")
    assert early.finding.retrained is None
    study.go[setting].set()
    finish(workshop)
    done = workshop.progress(setting)
    assert (done.state, done.finding.retrained) == ("done", "decoder")
    assert workshop.finding(setting) is done.finding


def test_the_newest_wish_wins_and_the_one_before_is_called_off(workshop, study):
    first, second, third = ROUNDED[:3]
    workshop.wish(first)
    assert study.begun[first].wait(30)
    workshop.wish(second)
    workshop.wish(third)
    assert workshop.progress(first).state == "superseded"
    assert workshop.progress(second).state == "none"
    assert workshop.progress(third).state == "waiting"
    for setting in (first, second, third):
        study.go[setting].set()
    finish(workshop)
    assert study.ended == [third]
    assert not study.begun[second].is_set()


def test_the_same_wish_again_neither_restarts_nor_repeats(workshop, study):
    setting = ROUNDED[0]
    workshop.wish(setting)
    assert study.begun[setting].wait(30)
    job = workshop._job
    workshop.wish(setting)
    assert workshop._job is job
    study.go[setting].set()
    finish(workshop)
    workshop.wish(setting)
    assert workshop._job is job
    assert study.ended == [setting]


def test_a_wish_that_was_called_off_can_be_wished_for_again(workshop, study):
    first, second = ROUNDED[:2]
    workshop.wish(first)
    assert study.begun[first].wait(30)
    workshop.wish(second)
    workshop.wish(first)
    study.go[first].set()
    finish(workshop)
    assert study.ended == [first]
    assert workshop.progress(first).state == "done"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidOptionError("too few. Pass more."), "too few. Pass more."),
        (KeyError("x"), "KeyError"),
    ],
)
def test_a_failure_is_told_and_the_next_wish_is_granted(workshop, study, error, told):
    study.error = error
    study.go[ROUNDED[0]].set()
    workshop.wish(ROUNDED[0])
    finish(workshop)
    failed = workshop.progress(ROUNDED[0])
    assert (failed.state, failed.stage) == ("failed", told)
    study.error = None
    study.go[ROUNDED[1]].set()
    workshop.wish(ROUNDED[1])
    finish(workshop)
    assert workshop.progress(ROUNDED[1]).state == "done"


def test_a_study_that_cannot_be_prepared_says_why():
    def prepare(report):
        report("read", 0.1)
        raise InvalidOptionError("no digits. Fetch them.")

    workshop = Workshop(prepare)
    with pytest.raises(InvalidOptionError):
        workshop.prepared.result(30)
    assert workshop.study is None
    assert workshop.preparing.state == "failed"
    assert workshop.preparing.stage == "no digits. Fetch them."
    workshop.close()


def test_preparation_is_reported_and_ends_when_the_page_does():
    reported, go = threading.Event(), threading.Event()

    def prepare(report):
        report("train the target", 0.25)
        reported.set()
        assert go.wait(30)
        report("train the target", 0.5)
        raise AssertionError("it went on")

    workshop = Workshop(prepare)
    assert reported.wait(30)
    now = workshop.preparing
    assert (now.state, now.stage, now.share) == ("working", "train the target", 0.25)
    closing = threading.Thread(target=workshop.close)
    closing.start()
    while not workshop._closing:
        closing.join(0.01)
    go.set()
    closing.join(30)
    assert not isinstance(workshop.prepared.exception(), AssertionError)


def test_of_many_findings_the_newest_are_kept(workshop, study):
    for event in study.go.values():
        event.set()
    study.begun = study.go = {
        setting: threading.Event() for setting in all_settings("adversarial-noise")
    }
    for event in study.go.values():
        event.set()
    several = all_settings("adversarial-noise")[:70]
    for setting in several:
        workshop.wish(setting)
        finish(workshop)
    kept = [setting for setting in several if workshop.finding(setting) is not None]
    assert kept == several[-64:]


def test_a_closed_workshop_takes_no_wish(study):
    workshop = Workshop(lambda _: study)
    workshop.prepared.result(30)
    workshop.close()
    workshop.wish(default_setting("rounding"))
    assert workshop.progress(default_setting("rounding")).state == "none"
