"""What the page shows is what the library computes, to the bit, wherever its sliders stand."""

import dataclasses
from functools import partial

import pytest
import torch

from oneway.benchmark import Experiment, bundled_spec
from oneway.benchmark.runner import trained_target
from oneway.data.images import no_progress
from oneway.defenses import build_defense
from oneway.errors import CorruptDataError
from oneway.evaluation import ReleaseSpec, Store
from oneway.metrics import inversion_errors
from oneway.playground import load_networks, networks_file, networks_key
from oneway.playground.session import (
    CLEAR,
    UNSURE,
    Session,
    _sample_rows,
    reconstruct,
)
from oneway.playground.settings import SLIDERS, Setting, all_settings
from oneway.releases import release
from oneway.targets import DefendedTarget
from playground.planted import default_setting
from playground.tiny import tiny_spec

EVERY = [setting for defense in SLIDERS for setting in all_settings(defense)]
LIKE_THE_LIBRARY = ("adversarial-noise", "codebook")
"""Attacked here and by the library: one defense that reads queries, and one of scores alone."""


@pytest.fixture(scope="module")
def experiment(digits, tmp_path_factory):
    """The same, run by the library into a store of its own."""
    spec = dataclasses.replace(
        tiny_spec(),
        releases=(
            ReleaseSpec("none", "none"),
            *(
                ReleaseSpec(name, name, dict(default_setting(name).options))
                for name in LIKE_THE_LIBRARY
            ),
        ),
    )
    store = Store(tmp_path_factory.mktemp("library"))
    return Experiment(spec, digits, store, device=torch.device("cpu"), report=no_progress)


@pytest.fixture(scope="module")
def outcomes(experiment):
    return {outcome.record.release: outcome for outcome in experiment.run()}


def test_no_position_of_any_slider_changes_a_label(session):
    clean = release(session.target.logits(session.samples))
    assert len(EVERY) == 1 + 5 + 10 * 8 * 9 + 5 * 4 + 1
    # Not all of the noise's 720 positions: its ends, and where neither slider nor budget is one.
    noise = [s for s in EVERY if s.defense == "adversarial-noise"]
    others = [s for s in EVERY if s.defense != "adversarial-noise"]
    for setting in [*others, *noise[::37], noise[-1]]:
        released = session.trace(setting, session.samples).released
        index = clean.argmax(1, keepdim=True)
        rivals = released.scatter(1, index, -1).amax(1, keepdim=True)
        assert (released.gather(1, index) > rivals).all(), setting


def test_a_release_is_that_of_the_registered_defense_to_the_bit(session, experiment):
    store, splits = experiment.store, experiment.splits
    target = trained_target(experiment.spec, splits, store, no_progress)
    clean = target(splits.auxiliary_images)
    for setting in [each for name in SLIDERS for each in all_settings(name)[::50]]:
        row = ReleaseSpec(setting.defense, setting.defense, dict(setting.options))
        built = experiment.defender.build(row, target, clean).defense
        wanted = DefendedTarget(target, built)(session.samples)
        assert torch.equal(session.trace(setting, session.samples).released, wanted), setting


def test_a_release_goes_in_batches_after_each_of_which_it_can_be_called_off(session, monkeypatch):
    monkeypatch.setattr("oneway.playground.session.ROWS", 64)
    setting, shares = Setting.of("rounding", {"decimals": 5}), []

    def report(_, share):
        shares.append(share)
        if len(shares) == 2:
            raise KeyError("called off")

    with pytest.raises(KeyError, match="called off"):
        next(session.examine(setting, report))
    rows = tiny_spec().data.auxiliary
    assert shares == [64 / rows, 128 / rows]
    whole = session._releases(setting, "test", lambda _, share: shares.append(share))
    assert shares[2:] == [64 / 100, 1, 1]
    _, logits = session._queries["test"]
    assert torch.equal(whole.argmax(-1), logits.argmax(-1))


def test_an_attacker_of_exactly_one_setting_is_the_librarys_retrained_one(
    session, outcomes, experiment
):
    images = experiment.splits.test_images
    for defense in LIKE_THE_LIBRARY:
        setting, outcome = default_setting(defense), outcomes[defense]
        early, final = session.examine(setting, no_progress)
        assert early.retrained is None
        assert final.retrained is not None
        for name in ("label-only", "static", "retrained"):
            assert final.errors[name] == outcome.record.errors[name], (defense, name)
        assert session.baseline_errors == dataclasses.asdict(outcome.record.baselines)
        reconstructed = reconstruct(final.retrained, session.trace(setting, images).released)
        assert torch.equal(reconstructed, outcome.results["retrained"].reconstructions), defense


def test_the_strongest_of_all_attackers_counts_and_nobody_does_worse_than_the_label(session):
    setting = Setting.of("rounding", {"decimals": 1})
    early, final = session.examine(setting, no_progress)
    for finding in (early, final):
        verdict = finding.verdict
        assert verdict.adaptive_error == min(finding.errors.values())
        assert verdict.adaptive_error <= session.baseline_errors["label"]
        assert finding.errors[verdict.strongest] == verdict.adaptive_error
    assert final.verdict.adaptive_error <= early.verdict.adaptive_error


def test_nothing_is_hidden_without_a_defense_and_all_by_the_label_alone(session):
    *_, none = session.examine(Setting.of("none", {}), no_progress)
    *_, label = session.examine(Setting.of("label-only", {}), no_progress)
    assert none.verdict.closed_gap == 0
    assert label.verdict.closed_gap == pytest.approx(1, abs=0.25)


def test_samples_are_answered_rightly_and_the_last_are_the_least_sure(session):
    answers = session.target(session.samples)
    assert torch.equal(answers.argmax(1), session.sample_labels)
    digits, unsure = session.sample_labels[:-UNSURE], answers.amax(1)[-UNSURE:]
    assert (digits.diff() > 0).all()
    assert (unsure.diff() > -1e-5).all()
    assert unsure.max() < answers.amax(1)[:-UNSURE].median()


def test_samples_are_a_clear_one_of_each_digit_and_then_the_least_sure():
    labels = torch.arange(60) % 10
    # Within a digit, row by row less sure: the clear one is in the middle of its six.
    sure = 0.9 - 0.01 * torch.arange(60)
    clean = ((1 - sure) / 9).unsqueeze(1).repeat(1, 10)
    clean[torch.arange(60), labels] = sure
    clean[:2] = clean[:2].roll(1, 1)  # wrong answers, which are no samples
    rows = _sample_rows(labels, clean)
    assert labels[rows[:CLEAR]].tolist() == list(range(10))
    assert rows[:CLEAR].tolist() == [30, 31, *range(32, 40)]
    assert rows[CLEAR:].tolist() == [59, 58, 57, 56, 55, 54]


def test_networks_come_back_from_their_file_all_but_exactly(session, networks, digits, tmp_path):
    path, key = tmp_path / "networks.safetensors", networks_key(tiny_spec(), "data")
    networks.save(path, key)
    again = Session(tiny_spec(), digits, Store(tmp_path), lambda _: load_networks(path, key))
    for setting in EVERY[::50]:
        released = again.trace(setting, session.samples).released
        assert torch.equal(released, session.trace(setting, session.samples).released), setting
    for name, error in session.baseline_errors.items():
        assert again.baseline_errors[name] == pytest.approx(error, rel=1e-3)
    clean = session.target(session.samples)
    for defense, mixed in session.mixed.items():
        ours = reconstruct(again.mixed[defense], clean)
        assert torch.allclose(ours, reconstruct(mixed, clean), atol=1 / 256), defense


def test_networks_of_another_spec_or_of_other_data_are_refused(networks, tmp_path):
    path, key = tmp_path / "networks.safetensors", networks_key(tiny_spec(), "data")
    networks.save(path, key)
    for other in (
        networks_key(tiny_spec(), "other data"),
        networks_key(bundled_spec("playground"), "data"),
    ):
        with pytest.raises(CorruptDataError, match=r"playground_networks\.py"):
            load_networks(path, other)


def test_the_installed_networks_are_those_of_the_installed_spec_and_digits(digits, tmp_path):
    """If this fails: `python benchmarks/playground_networks.py`, and commit the file."""
    spec = bundled_spec("playground")
    installed = Session(spec, digits, Store(tmp_path), partial(load_networks, networks_file()))
    assert not list(tmp_path.iterdir())  # nothing was trained
    errors = installed.baseline_errors
    assert errors["clean"] < errors["label"] < errors["prior"]
    assert 10 < installed.cells(default_setting("codebook")) < 2000 / 20


def test_a_library_built_noise_of_the_same_surrogate_is_the_same(session):
    setting = default_setting("adversarial-noise")
    defense = session.defense(setting)
    again = build_defense("adversarial-noise", dict(setting.options), defense.inverter)
    logits = session.target.logits(session.samples)
    assert torch.equal(defense(logits, session.samples), again(logits, session.samples))


def test_who_saw_the_scores_before_the_defense_is_the_static_attacker(session):
    clean = session.target(session.samples)
    guesses = reconstruct(session.static.reconstructor, clean)
    assert inversion_errors(session.samples, guesses).mean() < session.baseline_errors["prior"]
