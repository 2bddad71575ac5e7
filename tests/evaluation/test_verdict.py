"""What the audit promises: it alone grades, it never chooses by the grade, and it doubts itself."""

from statistics import stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.attacks import Workload, inversion_attacks
from oneway.contracts import AttackerKnowledge, Reconstructor
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError
from oneway.evaluation import (
    LEAST_CONFIDENT_SHARE,
    AttackResult,
    Baselines,
    Flag,
    Verdict,
    judge,
    run_attack,
    standard_error,
    take_baselines,
)
from oneway.evaluation.grading import ROWS as ROWS_AT_ONCE
from oneway.evaluation.verdict import gap_at_least
from oneway.metrics import bootstrap_gap

ROWS, QUERIES, CLASSES = 12, 8, 3
HELD_OUT = torch.arange(ROWS) % 3 == 0


def constant(level, asked=None, repeats=1):
    """A reconstructor that answers every query with one gray level."""

    def reconstruct(released):
        if asked is not None:
            asked.append((released, torch.is_grad_enabled()))
        return torch.full((released.shape[1], 1, 2, 2), level)

    return Reconstructor(reconstruct, repeats)


def grade(reconstructors, *, held_out_level=0.0, trained_level=0.5, test_level=1.0):
    """Run an attack with these reconstructors where each kind of row has a gray level of its
    own."""
    images = torch.full((ROWS, 1, 2, 2), trained_level)
    images[HELD_OUT] = held_out_level
    scores = torch.rand(ROWS + QUERIES, CLASSES, generator=torch.Generator().manual_seed(0))
    scores = scores.softmax(-1)
    knowledge = AttackerKnowledge(images, None, scores[:ROWS], HELD_OUT)
    test_images = torch.full((QUERIES, 1, 2, 2), test_level)
    result = run_attack(
        "some", lambda *_: reconstructors, knowledge, None, scores[ROWS:], test_images
    )
    return result, scores


def details(verdict: Verdict) -> tuple[str, ...]:
    return tuple(flag.detail for flag in verdict.flags)


@looped("flipped", [False, True])
def test_the_candidate_is_chosen_on_held_out_rows_though_another_is_better_on_test_rows(flipped):
    # One is right on the held-out rows, one on the rows trained on, one on the test rows.
    reconstructors = {"held out": constant(0.1), "trained": constant(0.5), "test": constant(0.9)}
    if flipped:
        reconstructors = dict(reversed(reconstructors.items()))
    result, _ = grade(reconstructors)
    assert (result.attack, result.reconstructor) == ("some", "held out")
    assert torch.equal(result.reconstructions, torch.full((QUERIES, 1, 2, 2), 0.1))
    assert result.errors.tolist() == pytest.approx([0.9**2] * QUERIES)
    assert result.error == pytest.approx(0.9**2)


def test_every_candidate_s_error_on_the_test_queries_is_told():
    result, _ = grade({"dark": constant(0.1), "bright": constant(0.9)})
    assert result.reconstructor == "dark"
    assert result.reconstructor_errors == pytest.approx({"dark": 0.9**2, "bright": 0.1**2})
    assert result.reconstructor_errors[result.reconstructor] == pytest.approx(result.error)


def test_an_attack_without_candidates_does_not_apply_and_has_no_result():
    result, _ = grade({})
    assert result is None


def test_the_choice_follows_the_held_out_rows():
    reconstructors = {"dark": constant(0.0), "bright": constant(1.0)}
    for level, expected in ((0.2, "dark"), (0.8, "bright")):
        for test_level in (0.0, 1.0):
            result, _ = grade(reconstructors, held_out_level=level, test_level=test_level)
            assert result.reconstructor == expected


def test_candidates_get_released_rows_and_nothing_else():
    asked = []
    _, scores = grade({"one": constant(0.3, asked)})
    (choosing, first), (grading, second) = asked
    assert torch.equal(choosing, scores[:ROWS][HELD_OUT].unsqueeze(0))
    assert torch.equal(grading, scores[ROWS:].unsqueeze(0))
    assert (first, second) == (False, False)  # no gradient is kept of grading


def test_an_attack_may_differentiate_while_it_prepares():
    modes = []

    def attack(*_):
        modes.append(torch.is_grad_enabled())
        return {"one": constant(0.3)}

    knowledge = AttackerKnowledge(torch.rand(6, 1, 2, 2), None, torch.rand(6, 3), HELD_OUT[:6])
    with torch.no_grad():
        run_attack("some", attack, knowledge, None, torch.rand(2, 3), torch.rand(2, 1, 2, 2))
    assert modes == [True]


class Api:
    """Tells the mean pixel of a query, and which answer to it this is; keeps what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, images, count):
        self.asked.append((images, count))
        pixel = images.flatten(1).mean(-1).expand(count, -1)
        number = torch.arange(count).unsqueeze(-1).expand_as(pixel)
        return torch.stack([pixel, number], -1)


def pictures(count, seed=0):
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def run(reconstructors, api, *, queries=QUERIES):
    """Run an attack on an API; what was recorded of it is NaN, and must not be looked at."""
    images, test_images = pictures(ROWS), pictures(queries, seed=1)
    recorded = torch.full((ROWS + queries, 2), torch.nan)
    knowledge = AttackerKnowledge(images, None, recorded[:ROWS], HELD_OUT, api, True)
    result = run_attack(
        "some", lambda *_: reconstructors, knowledge, None, recorded[ROWS:], test_images
    )
    return result, images, test_images


def brightness(released):
    """Answer with what :class:`Api` tells of each query, over the numbers of all answers."""
    spread = released[..., 1].sum(0)
    return (released[..., 0].mean(0) * spread).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_a_candidate_that_needs_several_answers_has_each_query_asked_so_often():
    api = Api()
    result, images, test_images = run({"R": Reconstructor(brightness, 3)}, api)
    (choosing, first), (grading, second) = api.asked
    assert torch.equal(choosing, images[HELD_OUT])
    assert torch.equal(grading, test_images)
    assert (first, second) == (3, 3)
    # 0 + 1 + 2 tells that three different answers came.
    mean = test_images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(result.reconstructions, (3 * mean).expand_as(test_images))


def test_a_candidate_that_needs_one_answer_has_nothing_asked_again_and_others_share_answers():
    observed, api = [], Api()
    reconstructors = {
        "four": constant(0.7, observed, repeats=4),
        "one": constant(0.2, observed),
        "also four": constant(0.7, observed, repeats=4),
    }
    images, test_images = pictures(ROWS), pictures(QUERIES, seed=1)
    released = torch.rand(ROWS + QUERIES, 2)
    knowledge = AttackerKnowledge(images, None, released[:ROWS], HELD_OUT, api, True)
    result = run_attack(
        "some", lambda *_: reconstructors, knowledge, None, released[ROWS:], test_images
    )
    assert list(result.reconstructor_errors) == list(reconstructors)
    assert [count for _, count in api.asked] == [4, 4]
    fours = [seen for seen, _ in observed if len(seen) == 4]
    assert [len(seen[0]) for seen in fours] == [int(HELD_OUT.sum())] * 2 + [QUERIES] * 2
    ones = [seen for seen, _ in observed if len(seen) == 1]
    assert torch.equal(ones[0][0], released[:ROWS][HELD_OUT])
    assert torch.equal(ones[1][0], released[ROWS:])


def test_a_candidate_that_needs_several_answers_is_refused_where_none_can_be_had():
    with pytest.raises(InvalidOptionError, match=r"needs 3 answers .* only recorded answers"):
        run({"R": Reconstructor(brightness, 3)}, None)


def test_queries_are_asked_and_reconstructed_in_parts_and_in_order():
    api, sizes = Api(), []

    def reconstruct(released):
        sizes.append(released.shape[1])
        return brightness(released)

    count = 2 * ROWS_AT_ONCE + 5
    result, _, test_images = run({"R": Reconstructor(reconstruct, 2)}, api, queries=count)
    assert sizes == [int(HELD_OUT.sum()), ROWS_AT_ONCE, ROWS_AT_ONCE, 5]
    assert [len(images) for images, _ in api.asked] == sizes
    mean = test_images.mean((1, 2, 3), keepdim=True).expand_as(test_images)
    torch.testing.assert_close(result.reconstructions, mean)
    assert result.errors.shape == (count,)


@looped("rows", [1, 3, QUERIES, 1000])
@looped("repeats", [1, 2])
def test_no_result_depends_on_how_many_queries_are_reconstructed_at_once(
    monkeypatch, rows, repeats
):
    monkeypatch.setattr("oneway.evaluation.grading.ROWS", rows)
    images, test_images = pictures(ROWS), pictures(QUERIES, seed=1)
    released = Api()(torch.cat([images, test_images]), 2)
    knowledge = AttackerKnowledge(images, None, released[1, :ROWS], HELD_OUT, Api(), True)
    result = run_attack(
        "some",
        lambda *_: {"R": Reconstructor(brightness, repeats)},
        knowledge,
        None,
        released[1, ROWS:],
        test_images,
    )
    mean = test_images.mean((1, 2, 3), keepdim=True).expand_as(test_images)
    torch.testing.assert_close(result.reconstructions, mean)
    expected = (mean - test_images).square().double().flatten(1).mean(-1)
    torch.testing.assert_close(result.errors, expected)


class Record:
    """An API that answers evenly, and a trainer of gray decoders: both keep what they are shown."""

    def __init__(self):
        self.shown = []

    def query(self, images, count):
        self.shown.append(images)
        return torch.full((count, len(images), CLASSES), 1 / CLASSES)

    def train(self, *tensors):
        self.shown.extend(tensors)
        return lambda confidences: torch.full((len(confidences), 1, 2, 2), 0.5)


ATTACKS = [attack for name, attack in inversion_attacks().items() if name != "optimising"]


@looped("attack", ATTACKS)
def test_no_attack_is_shown_the_test_images_while_it_prepares(attack):
    scores = torch.rand(ROWS + QUERIES, CLASSES, generator=torch.Generator().manual_seed(0))
    scores, test_images, record = scores.softmax(-1), pictures(QUERIES, seed=1), Record()
    knowledge = AttackerKnowledge(
        pictures(ROWS),
        scores[:ROWS],
        scores[:ROWS],
        HELD_OUT,
        query=record.query,
        random=True,
        repeats=(2,),
        simulated_defenses=[Identity()],
    )
    prepared = []

    def recorded(*arguments):
        reconstructors = attack(*arguments)
        prepared.extend(record.shown)
        return reconstructors

    run_attack("some", recorded, knowledge, record.train, scores[ROWS:], test_images)
    pixels = {image.numpy().tobytes() for image in test_images}
    rows = [row.numpy().tobytes() for tensor in prepared for row in tensor]
    if attack.model_selections(Workload(ROWS, QUERIES, (2,))):  # others train and ask nothing
        assert len(rows) >= 3 * ROWS
    assert not pixels & set(rows)


def test_baselines_are_the_best_attack_on_clean_scores_the_label_and_the_mean_image():
    images, test_images = pictures(ROWS), pictures(QUERIES, seed=1)
    results = results_of(
        label_only=[0.5] * QUERIES, static=[0.2] * QUERIES, retrained=[0.3] * QUERIES
    )
    baselines = take_baselines(results, images, test_images)
    assert baselines.clean.tolist() == [0.2] * QUERIES
    assert baselines.label.tolist() == [0.5] * QUERIES
    prior = (test_images.double() - images.mean(0)).square().mean((1, 2, 3))
    torch.testing.assert_close(baselines.prior, prior, rtol=1e-5, atol=1e-8)


def results_of(**errors):
    """Results from errors per query; names have a dash where Python has none."""
    results = {}
    for key, values in errors.items():
        name, each = key.replace("_", "-"), torch.as_tensor(values, dtype=torch.float64)
        guesses = torch.zeros(len(each), 1, 2, 2)
        results[name] = AttackResult(name, "one", each, guesses, {"one": float(each.mean())})
    return results


def baselines_of(clean, label):
    clean, label = (torch.as_tensor(values, dtype=torch.float64) for values in (clean, label))
    return Baselines(clean, label, 2 * label)


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
        results_of(**errors), baselines_of([0.1] * count, [0.5] * count), confident(count), 0
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
        baselines_of([0.2] * count, [0.7] * count),
        confident(count)[list(order)],
        0,
    )
    # Row i of the shuffled confidences is number order[i] from the bottom.
    tail = [
        row for row in range(count) if order[row] < max(1, round(LEAST_CONFIDENT_SHARE * count))
    ]
    considered = (errors[verdict.strongest.replace("-", "_")], errors["label_only"])
    lowest = min(sum(some[row] for row in tail) / len(tail) for some in considered)
    assert verdict.closed_gap_least_confident == pytest.approx((lowest - 0.2) / 0.5)


def test_a_failed_decoder_that_is_lucky_on_the_tail_does_not_count_there():
    results = results_of(label_only=[0.4] * 100, retrained=[0.1] * 5 + [0.9] * 95)
    verdict = judge(results, baselines_of([0.1] * 100, [0.4] * 100), confident(100), 0)
    assert verdict.closed_gap_least_confident == pytest.approx(1.0)


def test_baselines_of_the_tail_are_taken_over_the_tail():
    clean, label = [0.3] * 5 + [0.1] * 95, [0.7] * 5 + [0.2] * 95
    verdict = judge(
        results_of(retrained=[0.5] * 5 + [0.1] * 95), baselines_of(clean, label), confident(100), 0
    )
    assert verdict.closed_gap_least_confident == pytest.approx(0.5)
    assert verdict.closed_gap == pytest.approx((0.12 - 0.11) / (0.225 - 0.11))


@looped("label", [0.2, 0.1])
def test_there_is_no_gap_where_clean_scores_are_no_better_than_the_label(label):
    verdict = judge(
        results_of(retrained=[0.2] * 40), baselines_of([0.2] * 40, [label] * 40), confident(40), 0
    )
    assert verdict.closed_gap is None
    assert verdict.closed_gap_least_confident is None
    assert verdict.adaptive_error == pytest.approx(0.2)


def test_a_gap_may_be_missing_in_the_tail_alone():
    clean, label = [0.5] * 5 + [0.1] * 95, [0.5] * 100
    verdict = judge(
        results_of(retrained=[0.3] * 100), baselines_of(clean, label), confident(100), 0
    )
    assert verdict.closed_gap is not None
    assert verdict.closed_gap_least_confident is None


FAILED = "averaging error not below the label-only baseline: that attack failed"


@looped(
    ("error", "width", "raised"),
    [
        (0.55, 0.02, True),
        (0.507, 0.1, True),  # within two standard errors
        (0.5, 0.0, True),  # whoever falls back on the label
        (0.499, 0.1, False),
        (0.45, 0.02, False),
    ],
)
def test_an_error_that_is_not_below_the_label_baseline_is_flagged(error, width, raised):
    results = results_of(
        label_only=[0.5] * 100, averaging=spread(error, width=width), retrained=[0.1] * 100
    )
    verdict = judge(results, baselines_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert verdict.flags == ((Flag("attack-failed", FAILED, "averaging"),) if raised else ())


@looped(
    ("retrained", "failed"),
    [
        ([0.5] * 100, True),
        ([0.6] * 100, True),
        ([0.0, 0.998] * 50, True),  # chance
        ([0.49] * 100, False),
        ([0.3, 0.6] * 50, False),
    ],
)
def test_an_attack_fails_where_no_trained_attacker_beats_the_label_by_more_than_chance(
    retrained, failed
):
    results = results_of(label_only=[0.5] * 100, static=[0.9] * 100, retrained=retrained)
    asked = []
    verdict = judge(
        results,
        baselines_of([0.1] * 100, [0.5] * 100),
        confident(100),
        0,
        lambda: asked.append(1) or 0.05,
    )
    assert verdict.attack_failed is failed
    assert len(asked) == failed  # no limit is needed where G is measured
    assert verdict.detection_limit == (0.05 if failed else None)
    assert (verdict.closed_gap_at_least is not None) is failed
    if failed:
        assert 0 <= verdict.closed_gap_at_least <= 0.95


@given(
    st.lists(st.floats(0.2, 1), min_size=20, max_size=60),
    st.sampled_from([0.01, 0.02, 0.05, 0.1]),
    st.integers(0, 99),
)
def test_a_bound_falls_with_the_limit_and_with_the_interval(errors, limit, seed):
    noise = torch.rand(len(errors), generator=torch.Generator().manual_seed(seed)).double()
    failed = torch.tensor(errors, dtype=torch.float64) + 0.1 * noise
    label = torch.tensor(errors, dtype=torch.float64)
    baselines = Baselines(label / 2, label, label)
    bound, worse = gap_at_least(failed, baselines, limit), gap_at_least(failed, baselines, 0.2)
    assert 0 <= worse <= bound <= 1 - limit
    generator = torch.Generator().manual_seed(0)
    interval = bootstrap_gap(failed, label / 2, label, generator=generator)
    expected = min(1, interval.estimate) - limit - (interval.high - interval.low) / 2
    assert bound == pytest.approx(max(0, expected))


def test_nothing_is_claimed_where_nothing_is_known():
    failed, label = torch.full((100,), 0.5), [0.5] * 100
    results = results_of(label_only=label, retrained=failed.tolist())
    known = baselines_of([0.1] * 100, label)
    blind = judge(results, known, confident(100), 0)
    assert blind.attack_failed
    assert (blind.detection_limit, blind.closed_gap_at_least) == (None, None)
    alone = judge(results_of(label_only=label), known, confident(100), 0, lambda: 0.01)
    assert (alone.attack_failed, alone.closed_gap_at_least) == (True, None)
    no_gap = judge(results, baselines_of(label, label), confident(100), 0, lambda: 0.01)
    assert (no_gap.attack_failed, no_gap.closed_gap_at_least) == (True, None)
    # One query that clean scores tell alone: most draws have no gap.
    lone = baselines_of([0.5] * 99 + [0.0], label)
    assert judge(results, lone, confident(100), 0, lambda: 0.01).closed_gap_at_least is None
    assert gap_at_least(failed[:1].double(), baselines_of([0.1], [0.5]), 0.01) is None


def test_an_attacker_who_does_not_know_of_the_defense_may_fail():
    baselines = baselines_of([0.1] * 100, [0.5] * 100)
    static = {"static": [0.9] * 100}
    alone = judge(results_of(**static), baselines, confident(100), 0)
    assert [flag.name for flag in alone.flags] == ["attack-failed"]
    beside = judge(results_of(**static, retrained=[0.2] * 100), baselines, confident(100), 0)
    assert beside.flags == ()


def test_the_label_only_attacker_is_the_baseline_and_never_flagged_against_it():
    results = results_of(label_only=[0.9] * 100, retrained=[0.2] * 100)
    verdict = judge(results, baselines_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert details(verdict) == ()


@looped(
    ("retrained_error", "width", "raised"),
    [(0.3, 0.02, True), (0.21, 0.2, False), (0.2, 0.0, False), (0.15, 0.02, False)],
)
def test_retraining_that_made_it_worse_is_flagged_unless_it_may_be_chance(
    retrained_error, width, raised
):
    results = results_of(static=[0.2] * 100, retrained=spread(retrained_error, width=width))
    verdict = judge(results, baselines_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    statement = "retrained is weaker than static: the retraining failed"
    flag = Flag("retraining-failed", statement, "retrained")
    assert verdict.flags == ((flag,) if raised else ())


@looped("missing", ["static", "retrained"])
def test_nothing_is_compared_with_an_attacker_who_did_not_run(missing):
    results = results_of(static=[0.2] * 100, retrained=[0.4] * 100)
    del results[missing]
    verdict = judge(results, baselines_of([0.1] * 100, [0.5] * 100), confident(100), 0)
    assert details(verdict) == ()


@looped("label_changes", [0, 1, 17])
def test_changed_labels_are_flagged_with_their_number(label_changes):
    results = results_of(static=[0.2] * 100)
    verdict = judge(results, baselines_of([0.1] * 100, [0.5] * 100), confident(100), label_changes)
    expected = (
        (f"{label_changes} labels changed or tied in what was released",) if label_changes else ()
    )
    assert details(verdict) == expected


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_a_standard_error_is_of_the_mean_of_a_sample(values):
    expected = stdev(values) / len(values) ** 0.5
    found = standard_error(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(expected, abs=1e-12)
    assert standard_error(torch.tensor(values[:1])) == 0


def test_a_single_query_can_be_judged():
    results = results_of(static=[0.9], retrained=[0.95])
    verdict = judge(results, baselines_of([0.1], [0.5]), confident(1), 0)
    assert (verdict.closed_gap, verdict.closed_gap_least_confident) == (2.0, 2.0)
    assert [flag.name for flag in verdict.flags] == ["attack-failed", "retraining-failed"]
