"""Controls: what counts as misjudged, and which entries a planted leak tells."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.attacks import ATTACKS, inversion_attacks
from oneway.auditing import CONTROLS, ControlResult
from oneway.auditing.controls import (
    BROKEN_BELOW,
    HALVINGS,
    HOLDS_ABOVE,
    READ_ABOVE,
    PlantedScores,
    controls_for,
    failed_controls,
    judge_control,
    judge_planted,
    level_borders,
    plant,
    planted_errors,
    planted_positions,
)
from oneway.defenses.label_only import LabelOnly
from oneway.inversion import INPUT_TRANSFORMS, LEADING
from oneway.releases import release

READ = [name for name, control in CONTROLS.items() if control.expected == "read"]
BROKEN = [name for name, control in CONTROLS.items() if control.expected == "broken"]
CLEAN, LABEL = 0.01, 0.03


def made(control, images):
    """A control for seven classes."""
    planted = plant(images, 7, control.entries)
    return control.make(planted, torch.Generator().manual_seed(0))


def errors(mean, executor=0.0, rows=100):
    """Errors of queries with exactly this mean, half of them above it."""
    signs = torch.ones(rows, dtype=torch.float64)
    signs[::2] = -1
    return mean + executor * signs


def judged(name, mean, clean=CLEAN, label=LABEL):
    return judge_control(name, errors(mean), errors(clean), errors(label))


def test_each_kind_of_control_is_there():
    assert {control.expected for control in CONTROLS.values()} == {"broken", "read", "holds"}
    plain = {"identity", "permutation", "temperature", "class-offsets"}
    assert plain | {"noisy-tail", "copied-permutation"} == set(BROKEN)
    kinds = ("planted", "smoothed", "bagged", "averaged", "searched")
    scores = {f"{kind}-scores" for kind in kinds}
    assert scores | {"planted-leak", "planted-levels"} == set(READ)
    assert CONTROLS["label-only"].expected == "holds"


def test_no_gap_can_be_broken_and_hold_at_once():
    assert 0 < BROKEN_BELOW < HOLDS_ABOVE < 1
    assert 0 < READ_ABOVE < 1


@given(st.floats(-0.4, 2))
def test_gap_is_measured_and_compared_with_what_must_be(gap):
    mean = CLEAN + gap * (LABEL - CLEAN)
    for name in BROKEN:
        result = judged(name, mean)
        assert result.name == name
        assert result.measured == pytest.approx(gap, abs=1e-9)
        assert result.passed is (result.measured <= BROKEN_BELOW)
    result = judged("label-only", mean)
    assert result.measured == pytest.approx(gap, abs=1e-9)
    assert result.passed is (result.measured >= HOLDS_ABOVE)


@looped(
    ("name", "gap", "passed"),
    [
        ("identity", 0.0, True),
        ("identity", BROKEN_BELOW - 0.01, True),
        ("identity", BROKEN_BELOW + 0.01, False),
        ("identity", 1.0, False),
        ("label-only", 1.0, True),
        ("label-only", HOLDS_ABOVE + 0.01, True),
        ("label-only", HOLDS_ABOVE - 0.01, False),
        ("label-only", 0.0, False),
    ],
)
def test_each_side_of_the_thresholds(name, gap, passed):
    assert judged(name, CLEAN + gap * (LABEL - CLEAN)).passed is passed


@given(st.floats(0, 1), st.floats(0.01, 1))
def test_a_planted_leak_is_measured_by_what_of_the_labels_error_is_gone(left, label):
    for name in READ:
        result = judge_planted(name, errors(left * label), errors(label))
        assert result.name == name
        assert result.measured == pytest.approx(1 - left, abs=1e-9)
        assert result.passed is (result.measured >= READ_ABOVE)


@looped(("share", "passed"), [(0.51, True), (0.49, False), (-3.0, False)])
def test_each_side_of_what_must_be_read(share, passed):
    result = judge_planted("planted-leak", errors((1 - share) * LABEL), errors(LABEL))
    assert result.passed is passed


@looped("name", [*BROKEN, "label-only"])
@looped("clean", [LABEL, 2 * LABEL])
def test_where_clean_scores_tell_no_more_than_the_label_nothing_is_judged(name, clean):
    result = judged(name, 0.0, clean=clean)
    assert (result.name, result.expected) == (name, CONTROLS[name].expected)
    assert result.measured is result.passed is None


@looped(("executor", "clear"), [(0.03, True), (0.04, False)])
def test_a_gap_within_six_standard_errors_of_the_queries_is_unclear(executor, clear):
    """The gain is 0.02 of 100 queries: six standard errors of it are 0.6 times the executor."""
    result = judge_control("identity", errors(LABEL), errors(CLEAN), errors(LABEL, executor))
    assert (result.passed is False) is clear
    assert (result.measured is None) is not clear


@given(st.lists(st.sampled_from([True, False, None]), max_size=5))
def test_only_what_was_misjudged_has_failed(verdicts):
    results = {
        str(i): ControlResult(str(i), "broken", 0.5, p, "retrained", "leading")
        for i, p in enumerate(verdicts)
    }
    assert failed_controls(results) == [str(i) for i, p in enumerate(verdicts) if p is False]


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([(2, 3, 3), (7,)]))
def test_a_planted_leak_tells_the_entries_that_vary_most(seed, classes, shape):
    generator = torch.Generator().manual_seed(seed)
    flat = math.prod(shape)
    scales = torch.randperm(flat, generator=generator) / flat  # one entry does not vary at all
    images = 0.5 + scales.view(shape) * (torch.rand(50, *shape, generator=generator) - 0.5)
    places = planted_positions(images, classes)
    spreads = [row.double().var(correction=0).item() for row in images.flatten(1).T]
    ranked = sorted(range(flat), key=lambda place: -spreads[place])
    assert places.dtype == torch.int64
    assert places.tolist() == sorted(ranked[: min(classes - 1, flat - 1)])


def test_entries_that_never_vary_are_not_planted_unless_none_does():
    images = torch.zeros(6, 1, 2, 2)
    assert len(planted_positions(images, 3)) == 1
    images[::2, 0, 1, 0] = 1
    assert planted_positions(images, 3).tolist() == [2]


def test_planted_errors_are_those_of_the_planted_entries_alone():
    images = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([1, 8, 17])
    made = images.clone()
    made.flatten(1)[:, 4] += 9  # nobody planted that
    assert planted_errors(images, made, places).tolist() == [0] * 5
    made[:, 1, 2, 2] += 0.3  # entry 17
    made[0, 0, 0, 1] -= 0.6  # entry 1
    found = planted_errors(images, made, places)
    assert found.dtype == torch.float64
    expected = [(0.36 + 0.09) / 3, *[0.09 / 3] * 4]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@looped("name", CONTROLS)
def test_each_control_is_what_it_says_of_two_queries_with_one_label(name):
    """All but the last reveal more of such queries than the label; the label alone must not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 4, 4, generator=generator)
    logits = torch.tensor(
        [[5.0, 1, 0, -1, 2, 4, 3], [3.0, -2, 0, 1, 2, -4, 2.5]], dtype=torch.float64
    )
    control = made(CONTROLS[name], images)
    if CONTROLS[name].model is not None:
        logits = CONTROLS[name].model(plant(images, 7, CONTROLS[name].entries))(images)
    first, second = release(control(logits, images))
    differ = float((first - second).abs().sum())
    assert (differ > 1e-6) is (name != "label-only")
    if name == "planted-leak":  # it tells the query and not the scores
        again = release(control(logits.flip(0), images))
        assert torch.equal(again, release(control(logits, images)))
        told = release(LabelOnly()(logits))
        assert float((release(control(logits, images)) - told).abs().sum(-1).max()) < 2e-3


@looped("name", CONTROLS)
def test_each_control_is_attacked_by_somebody_with_a_input_transform_that_is_there(name):
    assert CONTROLS[name].attack in ATTACKS
    assert CONTROLS[name].input_transform in {None, *INPUT_TRANSFORMS}


def test_every_attacker_that_can_beat_the_label_is_vouched_for():
    """The stack mixes attackers that are, and the static attacker knows of no release."""
    vouched = {control.attack for control in CONTROLS.values()}
    audited = {name for name, attack in inversion_attacks().items() if attack.by_default}
    assert vouched == audited - {"label-only", "static", "stack"}


def test_a_input_transform_that_reads_what_no_other_does_is_vouched_for():
    named = {CONTROLS[name].input_transform for name in CONTROLS} - {None}
    assert named == {"within-label", "leading"}


@given(st.sets(st.sampled_from(sorted(ATTACKS))), st.integers(2, 20))
def test_a_control_is_run_where_its_attacker_takes_part_and_its_leak_can_be_planted(
    attacks, classes
):
    names = controls_for(attacks, classes)
    assert list(names) == [name for name in CONTROLS if name in names]  # in their order
    assert ("noisy-tail" in names) is ("retrained" in attacks and classes >= 6)
    others = set(CONTROLS) - {"noisy-tail"}
    assert others & set(names) == {name for name in others if CONTROLS[name].attack in attacks}


def test_the_noisy_tail_tells_what_its_reference_tells_and_no_more():
    """All that `leading` looks at: what it sees of both is the same."""
    generator = torch.Generator().manual_seed(0)
    control, images = CONTROLS["noisy-tail"], torch.rand(50, 1, 4, 4, generator=generator)
    logits = 3 * torch.randn(50, 7, dtype=torch.float64, generator=generator)
    noisy = release(made(control, images)(logits), dtype=torch.float64)
    even = release(control.reference(None, None)(logits), dtype=torch.float64)
    told = [rows.topk(LEADING) for rows in (noisy, even)]
    assert torch.equal(told[0].indices, told[1].indices)
    torch.testing.assert_close(told[0].values, told[1].values)
    assert (noisy.log() - even.log()).abs().amax(-1).median() > 3


def test_noise_hides_more_from_one_answer_than_is_left_of_ten():
    """Else it would not vouch for averaging: one answer would do."""
    noise = made(CONTROLS["averaged-scores"], torch.rand(2, 1, 4, 4))
    logits = torch.zeros(500, 7, dtype=torch.float64)
    assert float(noise(logits).std()) > 1
    assert float(noise.draws(logits, None, 10).mean(0).std()) < 0.6


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([0, 0.5]))
def test_levels_halve_the_values_of_an_entry_around_their_means(seed, rows, rounded):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, 1, generator=generator)
    values = values.round() if rounded else values
    borders = level_borders(values)
    assert list(borders) == sorted(set(borders))
    assert len(borders) < 2**HALVINGS
    if values.unique().numel() > 1:
        mean = values.double().mean().item()
        assert any(border == pytest.approx(mean) for border in borders)
        levels = torch.bucketize(values.double().flatten(), torch.tensor(borders).double())
        assert len(levels.unique()) == len(borders) + 1  # none is empty
        if rounded:
            assert len(borders) == 1
    else:
        assert borders == () or len(borders) == 1


@looped("classes", [2, 7, 30])
def test_the_scores_of_the_planted_model_are_the_planted_entries(classes):
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    planted = plant(images, classes, 5)
    assert len(planted.positions) == min(5, classes - 1)
    logs = PlantedScores(planted)(images).log_softmax(-1)
    assert logs.shape == (20, classes)
    read = (logs - logs[:, -1:])[:, : len(planted.positions)]
    entries = images.flatten(1)[:, planted.positions]
    assert torch.equal(entries, planted.values)
    # An affine function of each entry: the same for all images.
    slope = (read[1:] - read[:1]) / (entries[1:] - entries[:1])
    torch.testing.assert_close(slope, slope[:1, :1].expand_as(slope), rtol=1e-2, atol=1e-2)
