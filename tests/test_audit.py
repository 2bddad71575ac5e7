"""What the audit promises: it alone grades, it never chooses by the grade, and it doubts itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.attacks import label_only, retrained, static
from oneway.audit import TAIL_SHARE, AttackResult, Floors, judge, run_attack
from oneway.contracts import Observations

ROWS, QUERIES, CLASSES = 12, 8, 3
HELD_OUT = torch.arange(ROWS) % 3 == 0


def constant(level, asked=None):
    """A candidate that answers every query with one gray level."""

    def reconstruct(released):
        if asked is not None:
            asked.append((released, torch.is_grad_enabled()))
        return torch.full((len(released), 1, 2, 2), level)

    return reconstruct


def grade(candidates, *, held_out_level=0.0, trained_level=0.5, test_level=1.0):
    """Run an attack with these candidates where each kind of row has a gray level of its own."""
    images = torch.full((ROWS, 1, 2, 2), trained_level)
    images[HELD_OUT] = held_out_level
    scores = torch.rand(ROWS + QUERIES, CLASSES, generator=torch.Generator().manual_seed(0))
    scores = scores.softmax(-1)
    observations = Observations(images, None, scores[:ROWS], HELD_OUT)
    test_images = torch.full((QUERIES, 1, 2, 2), test_level)
    result = run_attack(
        "some", lambda *_: candidates, observations, None, scores[ROWS:], test_images
    )
    return result, scores


@pytest.mark.parametrize("flipped", [False, True])
def test_the_candidate_is_chosen_on_held_out_rows_though_another_is_better_on_test_rows(flipped):
    # One is right on the held-out rows, one on the rows trained on, one on the test rows.
    candidates = {"held out": constant(0.1), "trained": constant(0.5), "test": constant(0.9)}
    if flipped:
        candidates = dict(reversed(candidates.items()))
    result, _ = grade(candidates)
    assert (result.attack, result.candidate) == ("some", "held out")
    assert result.reconstruct is candidates["held out"]
    assert result.errors.tolist() == pytest.approx([0.9**2] * QUERIES)
    assert result.error == pytest.approx(0.9**2)


def test_the_choice_follows_the_held_out_rows():
    candidates = {"dark": constant(0.0), "bright": constant(1.0)}
    for level, expected in ((0.2, "dark"), (0.8, "bright")):
        for test_level in (0.0, 1.0):
            result, _ = grade(candidates, held_out_level=level, test_level=test_level)
            assert result.candidate == expected


def test_candidates_get_released_rows_and_nothing_else():
    asked = []
    _, scores = grade({"one": constant(0.3, asked)})
    (choosing, first), (grading, second) = asked
    assert torch.equal(choosing, scores[:ROWS][HELD_OUT])
    assert torch.equal(grading, scores[ROWS:])
    assert (first, second) == (False, False)  # no gradient is kept of grading


def test_an_attack_may_differentiate_while_it_prepares():
    modes = []

    def attack(*_):
        modes.append(torch.is_grad_enabled())
        return {"one": constant(0.3)}

    observations = Observations(torch.rand(6, 1, 2, 2), None, torch.rand(6, 3), HELD_OUT[:6])
    with torch.no_grad():
        run_attack("some", attack, observations, None, torch.rand(2, 3), torch.rand(2, 1, 2, 2))
    assert modes == [True]


@pytest.mark.parametrize("attack", [label_only, static, retrained])
def test_no_attack_is_shown_the_test_images(attack):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(ROWS, 1, 2, 2, generator=generator)
    test_images = torch.rand(QUERIES, 1, 2, 2, generator=generator)
    scores = torch.rand(ROWS + QUERIES, CLASSES, generator=generator).softmax(-1)
    shown = []

    def train(*tensors):
        shown.extend(tensors)
        return constant(0.5)

    observations = Observations(images, scores[:ROWS], scores[:ROWS], HELD_OUT)
    run_attack("some", attack, observations, train, scores[ROWS:], test_images)
    pixels = {image.numpy().tobytes() for image in test_images}
    rows = [row.numpy().tobytes() for tensor in shown for row in tensor]
    assert len(rows) == 3 * ROWS
    assert not pixels & set(rows)


def results_of(**errors):
    """Results from errors per query; names have a dash where Python has none."""
    return {
        name.replace("_", "-"): AttackResult(
            name.replace("_", "-"), "one", torch.as_tensor(values, dtype=torch.float64), constant(0)
        )
        for name, values in errors.items()
    }


def floors_of(clean, label):
    clean, label = (torch.as_tensor(values, dtype=torch.float64) for values in (clean, label))
    return Floors(clean, label, 2 * label)


def confident(count):
    """Confidences of which row 0 is the least sure, row 1 the next, and so on."""
    top = torch.linspace(0.5, 0.9, count)
    return torch.stack([top, 1 - top], -1)


def spread(mean, count=100, width=0.02):
    """Errors around a mean, evenly, so that they have some deviation."""
    return (mean + width * torch.linspace(-1, 1, count, dtype=torch.float64)).tolist()


@given(st.data(), st.integers(1, 60))
def test_the_strongest_attacker_makes_the_headline(data, count):
    row = st.lists(st.floats(0, 1), min_size=count, max_size=count)
    errors = {name: data.draw(row) for name in ("label_only", "static", "retrained")}
    verdict = judge(
        results_of(**errors), floors_of([0.1] * count, [0.5] * count), confident(count), 0
    )
    means = {name.replace("_", "-"): sum(e) / count for name, e in errors.items()}
    assert verdict.adaptive_error == pytest.approx(min(means.values()))
    assert means[verdict.strongest] == pytest.approx(min(means.values()))
    assert verdict.closed_gap == pytest.approx((min(means.values()) - 0.1) / 0.4)


@given(st.data(), st.integers(1, 90))
def test_the_tail_is_the_least_confident_twentieth_of_the_overall_strongest_or_the_label(
    data, count
):
    row = st.lists(st.floats(0, 1), min_size=count, max_size=count)
    errors = {name: data.draw(row) for name in ("label_only", "static", "retrained")}
    order = data.draw(st.permutations(range(count)))
    verdict = judge(
        results_of(**errors),
        floors_of([0.2] * count, [0.7] * count),
        confident(count)[list(order)],
        0,
    )
    # Row i of the shuffled confidences is number order[i] from the bottom.
    tail = [row for row in range(count) if order[row] < max(1, round(TAIL_SHARE * count))]
    considered = (errors[verdict.strongest.replace("-", "_")], errors["label_only"])
    lowest = min(sum(some[row] for row in tail) / len(tail) for some in considered)
    assert verdict.closed_gap_tail == pytest.approx((lowest - 0.2) / 0.5)


def test_a_failed_decoder_that_is_lucky_on_the_tail_does_not_count_there():
    results = results_of(label_only=[0.4] * 100, retrained=[0.1] * 5 + [0.9] * 95)
    verdict = judge(results, floors_of([0.1] * 100, [0.4] * 100), confident(100), 0)
    assert verdict.closed_gap_tail == pytest.approx(1.0)


def test_floors_of_the_tail_are_taken_over_the_tail():
    clean, label = [0.3] * 5 + [0.1] * 95, [0.7] * 5 + [0.2] * 95
    verdict = judge(
        results_of(retrained=[0.5] * 5 + [0.1] * 95), floors_of(clean, label), confident(100), 0
    )
    assert verdict.closed_gap_tail == pytest.approx(0.5)
    assert verdict.closed_gap == pytest.approx((0.12 - 0.11) / (0.225 - 0.11))


@pytest.mark.parametrize("label", [0.2, 0.1])
def test_there_is_no_gap_where_clean_scores_are_no_better_than_the_label(label):
    verdict = judge(
        results_of(retrained=[0.2] * 40), floors_of([0.2] * 40, [label] * 40), confident(40), 0
    )
    assert verdict.closed_gap is None
    assert verdict.closed_gap_tail is None
    assert verdict.adaptive_error == pytest.approx(0.2)


def test_a_gap_may_be_missing_in_the_tail_alone():
    clean, label = [0.5] * 5 + [0.1] * 95, [0.5] * 100
    verdict = judge(results_of(retrained=[0.3] * 100), floors_of(clean, label), confident(100), 0)
    assert verdict.closed_gap is not None
    assert verdict.closed_gap_tail is None


FAILED = "static error above the label-only floor: that attack failed"


@pytest.mark.parametrize(
    ("static_error", "width", "raised"),
    [
        (0.55, 0.02, True),
        (0.503, 0.0, False),  # within one percent
        (0.507, 0.0, True),
        (0.507, 0.1, False),  # within two standard errors
        (0.45, 0.02, False),
    ],
)
def test_an_error_above_the_label_floor_is_flagged_unless_it_may_be_chance(
    static_error, width, raised
):
    results = results_of(
        label_only=[0.5] * 100, static=spread(static_error, width=width), retrained=[0.1] * 100
    )
    verdict = judge(results, floors_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert verdict.flags == ((FAILED,) if raised else ())


def test_the_label_only_attacker_is_the_floor_and_never_flagged_against_it():
    results = results_of(label_only=[0.9] * 100, retrained=[0.2] * 100)
    verdict = judge(results, floors_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert verdict.flags == ()


@pytest.mark.parametrize(
    ("retrained_error", "width", "raised"),
    [(0.3, 0.02, True), (0.21, 0.2, False), (0.2, 0.0, False), (0.15, 0.02, False)],
)
def test_retraining_that_made_it_worse_is_flagged_unless_it_may_be_chance(
    retrained_error, width, raised
):
    results = results_of(static=[0.2] * 100, retrained=spread(retrained_error, width=width))
    verdict = judge(results, floors_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert verdict.flags == (
        ("retrained is weaker than static: the retraining failed",) if raised else ()
    )


@pytest.mark.parametrize("missing", ["static", "retrained"])
def test_nothing_is_compared_with_an_attacker_who_did_not_run(missing):
    results = results_of(static=[0.2] * 100, retrained=[0.4] * 100)
    del results[missing]
    verdict = judge(results, floors_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert verdict.flags == ()


@pytest.mark.parametrize("flips", [0, 1, 17])
def test_changed_labels_are_flagged_with_their_number(flips):
    results = results_of(static=[0.2] * 100)
    verdict = judge(results, floors_of([0.1] * 100, [0.5] * 100), confident(100), flips)
    expected = (f"{flips} labels changed or tied in what was released",) if flips else ()
    assert verdict.flags == expected


def test_a_single_query_can_be_judged():
    results = results_of(static=[0.9], retrained=[0.95])
    verdict = judge(results, floors_of([0.1], [0.5]), confident(1), 0)
    assert (verdict.closed_gap, verdict.closed_gap_tail) == (2.0, 2.0)
    assert len(verdict.flags) == 3
