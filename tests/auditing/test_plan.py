"""Laws of planning: what is affordable is kept, the baselines always, and what is left out is
told."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.auditing import CONTROLS, AuditSettings
from oneway.auditing.controls import controls_for
from oneway.auditing.plan import (
    FIRST_EPOCHS,
    FULL_AUDIT_TRANSFORMS,
    LEAST_ROWS,
    LEAST_ROWS_WITHOUT_DECODERS,
    LEAST_STEPS,
    REPEATS,
    SHARE_TRAINED,
    SINGLE_QUERIES,
    WIDTHS,
    AuditPlan,
    Costs,
    estimate_seconds,
    first_epochs_for,
    make_plan,
    settings_for,
)

ALWAYS = ("label-only", "cell-means", "kernel-ridge", "static", "retrained", "stack")
MORE = ("averaging", "adversarial-training", "optimising")
CHEAP = ("label-only", "cell-means", "kernel-ridge", "stack")
DECODING = ("static", "retrained")
FULL = AuditPlan(
    attacks=ALWAYS + MORE,
    input_transforms=FULL_AUDIT_TRANSFORMS,
    widths=WIDTHS,
    repeats=REPEATS,
    most_epochs=48,
    controls=("identity", "label-only"),
    seeds=3,
    auxiliary=8000,
    detection=True,
)
COSTS = Costs(
    {
        (input_transform, width): 1e-5 * width
        for input_transform in FULL_AUDIT_TRANSFORMS
        for width in (16, 32)
    },
    asking=1e-4,
    single=1e-3,
    solving=1e-10,
    auxiliary=8000,
    test=1000,
    entries=784,
)


@st.composite
def full_plans(draw):
    """What applies to some release, and what was measured of it."""
    attacks = ALWAYS + tuple(draw(st.lists(st.sampled_from(MORE), unique=True)))
    widths = tuple(draw(st.lists(st.sampled_from((4, 8, 16, 32)), min_size=1, unique=True)))
    repeats = tuple(draw(st.lists(st.sampled_from((2, 10, 100)), min_size=1, unique=True)))
    fronts = draw(
        st.sampled_from([FULL_AUDIT_TRANSFORMS, ("standardized",), ("standardized", "faithful")])
    )
    rows = draw(st.integers(200, 20_000))
    plan = dataclasses.replace(
        FULL,
        attacks=attacks,
        input_transforms=fronts,
        widths=widths,
        repeats=repeats,
        seeds=draw(st.integers(1, 5)),
        auxiliary=rows,
        controls=draw(st.sampled_from([(), FULL.controls, controls_for(attacks, 10)])),
    )
    price = st.floats(1e-7, 1e-2)
    # Of those that controls name, too, whoever takes part.
    by_transform = {name: draw(price) for name in FULL_AUDIT_TRANSFORMS}
    by_width = {width: draw(st.floats(0.5, 4)) for width in widths}
    training = {
        (name, width): by_transform[name] * by_width[width]
        for name, width in itertools.product(FULL_AUDIT_TRANSFORMS, widths)
    }
    return plan, Costs(
        training,
        draw(price),
        draw(price),
        draw(st.floats(1e-12, 1e-9)),
        rows,
        draw(st.integers(50, 5000)),
        draw(st.sampled_from((7, 64, 784, 12288))),
    )


MINUTES = st.floats(1e-4, 1e5)


def ranks(plan, full):
    """Each part of a plan, so that none is larger in a plan that is no more."""
    return (
        [attack in plan.attacks for attack in full.attacks],
        [input_transform in plan.input_transforms for input_transform in full.input_transforms],
        [len(plan.widths), max(plan.widths)],
        [len(plan.repeats)],
        [plan.detection],
        # Not the most epochs: what is left out gives time for more of them.
        [len(plan.controls), plan.seeds],
        # Attackers without decoders have time for rows again.
        [plan.decoders, plan.auxiliary if plan.decoders else 0],
    )


def no_more(less, more, full):
    return all(
        one <= other
        for part, whole in zip(ranks(less, full), ranks(more, full), strict=True)
        for one, other in zip(part, whole, strict=True)
    )


def told_of(plan, full):
    """Say what a plan leaves out, found by comparing it with the full one."""
    told = []
    gone = sorted(set(full.widths) - set(plan.widths))
    if gone and max(full.widths) in plan.widths:
        told.append("decoders of width " + ", ".join(map(str, gone)))
    elif gone:
        told.append(f"decoders of another width than {min(full.widths)}")
    optional = [name for name in MORE if plan.decoders or name not in DECODING]
    told += [f"the {name} attacker" for name in optional if name not in plan.attacks]
    if plan.repeats != full.repeats:
        told.append(f"averaging of more than {min(full.repeats)} answers")
    if plan.input_transforms != full.input_transforms:
        told.append("the faithful input transform")
    if not plan.detection:
        told.append("the detection limit")
    if not plan.decoders:
        gone = [name for name in full.attacks if name in DECODING]
        told.append(f"all decoders ({', '.join(gone)})")
        if plan.controls != full.controls:
            told.append("the controls of decoders")
    if plan.auxiliary != full.auxiliary:
        told.append(f"{full.auxiliary - plan.auxiliary} of {full.auxiliary} auxiliary rows")
    return told


@given(full_plans(), MINUTES)
def test_a_plan_is_never_more_than_the_full_one_nor_without_baselines(case, minutes):
    full, costs = case
    plan = make_plan(full, costs, minutes)
    for name in ("attacks", "input_transforms", "widths", "repeats"):
        kept, whole = getattr(plan, name), getattr(full, name)
        assert kept
        assert set(kept) <= set(whole)
        assert [value for value in whole if value in kept] == list(kept)  # in their order
    assert 1 <= plan.seeds <= full.seeds
    gone = {*full.attacks} - {*plan.attacks}
    assert plan.controls == tuple(
        name
        for name in full.controls
        if CONTROLS[name].attack not in gone & {*MORE}
        and (plan.decoders or CONTROLS[name].input_transform is None)
    )
    assert plan.first_epochs <= plan.most_epochs <= full.most_epochs
    assert set(ALWAYS if plan.decoders else CHEAP) <= set(plan.attacks)
    assert plan.decoders or not {*DECODING} & {*plan.attacks}
    # Who does not know of it would call noise protection: averaging stays where it applies.
    assert ("averaging" in plan.attacks) is ("averaging" in full.attacks)
    assert "averaging" in full.attacks or plan.repeats == full.repeats
    assert "standardized" in plan.input_transforms
    # Rows are always enough where there are so many.
    least = LEAST_ROWS if plan.decoders else LEAST_ROWS_WITHOUT_DECODERS
    assert min(full.auxiliary, least) <= plan.auxiliary <= full.auxiliary
    kept = make_plan(full, costs, minutes, least_rows=full.auxiliary)
    assert kept.auxiliary == full.auxiliary or not kept.decoders
    missing = [f"the {name} attacker" for name in MORE if name not in full.attacks]
    expected = [told for told in told_of(plan, full) if told not in missing]
    assert sorted(plan.left_out) == sorted(expected)


@given(full_plans())
def test_without_a_limit_or_with_enough_time_nothing_is_left_out(case):
    full, costs = case
    seconds = estimate_seconds(full, costs)
    for minutes in (None, 1.01 * seconds / 60):
        plan = make_plan(full, costs, minutes)
        most = plan.most_epochs
        assert plan == dataclasses.replace(full, seconds=seconds, most_epochs=most)
        # The search may go on for as long as all decoders would be done in time.
        limit = math.inf if minutes is None else 60 * minutes
        assert 2 * full.first_epochs <= most
        if most < full.most_epochs:
            assert estimate_seconds(full, costs, most) <= limit
            assert estimate_seconds(full, costs, 2 * most) > limit


@given(full_plans(), MINUTES)
def test_a_plan_fits_or_it_is_the_least_one(case, minutes):
    full, costs = case
    plan = make_plan(full, costs, minutes)
    assert plan.seconds == estimate_seconds(plan, costs)
    if plan.seconds <= 60 * minutes:
        return
    assert not {"optimising", "adversarial-training"} & set(plan.attacks)
    assert "faithful" not in plan.input_transforms
    assert not plan.detection
    assert plan.widths == (min(full.widths),)
    assert plan.seeds == 1
    assert not plan.decoders
    assert plan.auxiliary // 2 < LEAST_ROWS_WITHOUT_DECODERS
    if "averaging" in full.attacks:
        assert plan.repeats == (min(full.repeats),)


@given(full_plans(), MINUTES, MINUTES)
def test_seconds_that_are_spent_and_a_slower_machine_count(case, one, other):
    """A plan of what is left of the time, and of a machine that takes twice as long."""
    full, costs = case
    minutes, spent = one + other, 60 * other
    assert make_plan(full, costs, minutes, spent=spent).left_out == (
        make_plan(full, costs, minutes - spent / 60).left_out
    )
    slower = costs.slower(2.0)
    assert estimate_seconds(full, slower) == pytest.approx(2 * estimate_seconds(full, costs))
    assert no_more(make_plan(full, slower, one), make_plan(full, costs, one), full)


@given(full_plans(), MINUTES, MINUTES)
def test_more_minutes_never_give_less(case, one, other):
    full, costs = case
    less, more = (make_plan(full, costs, minutes) for minutes in sorted((one, other)))
    assert no_more(less, more, full)
    assert len(more.left_out) <= len(less.left_out)


def test_the_least_missed_goes_first_and_the_rows_last():
    """Each plan of less and less time leaves out what the one before it did, and more."""
    seconds = estimate_seconds(FULL, COSTS)
    plans = [make_plan(FULL, COSTS, seconds * share / 60) for share in (0.999, 0.5, 0.1, 1e-6)]
    assert plans[0].left_out[0] == "decoders of width 16"
    assert plans[0].widths == (32,)
    assert plans[-1].left_out[-1] == "7750 of 8000 auxiliary rows"
    assert plans[-1].widths == (16,)
    for more, less in itertools.pairwise(plans):
        assert no_more(less, more, FULL)
        assert len(less.left_out) > len(more.left_out)


@given(full_plans())
def test_every_part_that_can_be_left_out_has_a_price(case):
    full, costs = case
    whole = estimate_seconds(full, costs)
    assert whole > 0
    for attack in set(full.attacks) & set(MORE):
        kept = tuple(name for name in full.attacks if name != attack)
        assert estimate_seconds(dataclasses.replace(full, attacks=kept), costs) < whole
    assert estimate_seconds(dataclasses.replace(full, detection=False), costs) < whole
    more = dataclasses.replace(full, seeds=full.seeds + 1)
    assert estimate_seconds(more, costs) > whole
    half = dataclasses.replace(full, auxiliary=full.auxiliary // 2)
    assert estimate_seconds(half, costs) < whole
    slower = dataclasses.replace(costs, asking=10 * costs.asking)
    assert estimate_seconds(full, slower) > whole
    slower = dataclasses.replace(
        costs, training={pair: 10 * price for pair, price in costs.training.items()}
    )
    assert estimate_seconds(full, slower) > whole
    slower = dataclasses.replace(costs, solving=10 * costs.solving)
    assert estimate_seconds(full, slower) > whole
    # Single queries are timed whatever is left out.
    slower = dataclasses.replace(costs, single=1 + costs.single)
    assert estimate_seconds(full, slower) == pytest.approx(whole + 2 * SINGLE_QUERIES)
    longer = dataclasses.replace(full, first_epochs=2 * full.first_epochs)
    assert estimate_seconds(longer, costs) > whole
    for name in full.controls:
        rest = tuple(other for other in full.controls if other != name)
        less = estimate_seconds(dataclasses.replace(full, controls=rest), costs)
        # Some controls train no decoder, and take no time that counts.
        assert less < whole if CONTROLS[name].input_transform else less == whole


PRICES = {pair: price for price, pair in enumerate(COSTS.training, start=1)}
"""Whole seconds per row and epoch, so that sums are exact."""


def selection_of(first, rows, times):
    """Return the seconds of a model selection that ends at this multiple of the first epochs."""
    leader = PRICES["standardized", 32]
    others = sum(PRICES.values()) - leader
    searched = {1: 1, 2: 1 + 2, 4: 1 + 2 + 4}[times]
    return first * rows * (searched * leader + times * SHARE_TRAINED * others)


def test_what_is_not_left_out_is_priced_to_the_second():
    costs = dataclasses.replace(COSTS, training=PRICES, asking=2.0, single=3.0)
    bare = dataclasses.replace(FULL, attacks=(), controls=(), auxiliary=800, first_epochs=7)
    asking = 3 * (800 + 1000) * 2.0
    timing = 2 * SINGLE_QUERIES * 3.0
    # Two galleries of all test queries, and rows that choose, for the release and clean scores.
    matching = 2 * 2 * (1000 + 256) * 2.0
    assert estimate_seconds(bare, costs) == asking + timing + matching
    # An attacker trains its first decoder for once and twice the epochs, and every other one for
    # twice, but for what is given up on the way.
    attacked = dataclasses.replace(bare, attacks=("retrained",))
    for epochs, plan in (
        (1, dataclasses.replace(attacked, most_epochs=13)),
        (2, attacked),
        (2, dataclasses.replace(attacked, most_epochs=14)),
    ):
        more = estimate_seconds(plan, costs) - estimate_seconds(bare, costs)
        assert more == pytest.approx(3 * selection_of(7, 800, epochs))
    more = estimate_seconds(attacked, costs, 28) - estimate_seconds(bare, costs, 28)
    assert more == pytest.approx(3 * selection_of(7, 800, 4))
    # The control, its decoder on clean scores, and none of the seeds has it again.
    controlled = dataclasses.replace(bare, controls=("identity",))
    more = estimate_seconds(controlled, costs) - estimate_seconds(bare, costs)
    assert more == 2 * (2 * 7) * 800 * PRICES["within-label", 16]


@looped(
    ("attack", "selections", "queries"),
    [
        ("static", 1, 0),
        # Each answer to each row again, for each number of answers, and to held-out rows twice.
        # And 100 instead of 1 to the candidates of two galleries, and to rows that choose.
        ("averaging", 2, 110 * (800 + 100 + 1000) + 2 * 99 * (1000 + 256)),
        # A surrogate of its own besides.
        ("adversarial-training", 2, 0),
        # Two pulls of 5 and of 20 steps, each there and back, on queries and held-out rows.
        ("optimising", 1, 3 * 2 * (5 + 20) * (1000 + 100)),
    ],
)
def test_an_attack_is_priced_by_its_decoders_and_queries(attack, selections, queries):
    bare = dataclasses.replace(FULL, attacks=("retrained",), auxiliary=800, seeds=1)
    costs = dataclasses.replace(COSTS, training=PRICES, asking=0.5, solving=0.0)
    with_it = dataclasses.replace(bare, attacks=("retrained", attack))
    more = estimate_seconds(with_it, costs) - estimate_seconds(bare, costs)
    selection = selection_of(bare.first_epochs, 800, 2)
    assert more == pytest.approx(selections * selection + 0.5 * queries)


def solved(auxiliary, test, entries):
    """Count what kernel ridge regression multiplies, step by step."""
    few, judges, columns = min(auxiliary, 1000), min(auxiliary, 4096), min(entries, 64)
    total = 0
    for _regression in range(5):
        for _length in range(6):
            total += 10 * few**3  # eigenvectors
            total += 19 * few**2 * (columns + 1)  # weights for each penalty, and a diagonal
        landmarks = min(auxiliary, 4000)
        total += landmarks**3 / 3  # two Cholesky factors
        total += auxiliary * landmarks**2  # coordinates of all rows, and half of their products
        total += judges * landmarks**2 / 2  # the influence of each judging row
        total += 2 * landmarks**2 * entries  # four triangular systems
        total += (auxiliary + judges + test) * landmarks * entries
    return total


@looped(("rows", "entries"), [(800, 10), (8000, 784), (20_000, 784)])
def test_kernel_ridge_is_priced_on_both_scores_and_on_each_planted_leak(rows, entries):
    bare = dataclasses.replace(FULL, attacks=(), auxiliary=rows, seeds=2, controls=())
    costs = dataclasses.replace(COSTS, solving=1.0, entries=entries)
    alone = dataclasses.replace(bare, detection=False)
    both = dataclasses.replace(bare, attacks=("kernel-ridge",))
    once = solved(rows, 1000, entries)
    found = {
        name: estimate_seconds(plan, costs) - estimate_seconds(alone, costs)
        for name, plan in {
            "no attacker": bare,
            "attacked": dataclasses.replace(both, detection=False),
            "with leaks": both,
        }.items()
    }
    # Clean scores and the release; and leaks of two kinds and four worths.
    assert found == pytest.approx(
        {"no attacker": 0, "attacked": 2 * 2 * once, "with leaks": 2 * (2 + 2 * 4) * once}
    )


@given(full_plans(), st.data())
def test_each_decoder_has_a_price_of_its_own(case, data):
    full, costs = case
    whole = estimate_seconds(full, costs)
    pair = data.draw(st.sampled_from(sorted(costs.training)))
    slower = {**costs.training, pair: 2 * costs.training[pair]}
    more = estimate_seconds(full, dataclasses.replace(costs, training=slower)) - whole
    input_transform, width = pair
    controls = {CONTROLS[name].input_transform for name in full.controls}
    takes_part = input_transform in full.input_transforms or (
        input_transform in controls and width == min(full.widths)
    )
    assert (more > 1e-12 * whole) is takes_part


def test_decoders_are_trained_in_one_cycle_of_so_many_epochs():
    for epochs in (1, 6, 48):
        settings = settings_for(epochs)
        assert settings.epochs == epochs
        assert settings.schedule == "one-cycle"
        assert settings.grace >= 2


@given(st.integers(200, 10**6))
def test_few_rows_are_seen_more_often_so_that_a_decoder_takes_enough_steps(rows):
    epochs = first_epochs_for(rows)
    assert epochs >= FIRST_EPOCHS
    steps = math.ceil(rows / settings_for(epochs).batch_size)
    assert epochs * steps >= LEAST_STEPS
    assert epochs == FIRST_EPOCHS or (epochs - 1) * steps < LEAST_STEPS  # and no more


@given(st.integers(200, 10**6), st.floats(1e-4, 1e5))
def test_rows_are_left_out_last_and_the_first_epochs_stay(rows, minutes):
    """That steps are saved is what halving the rows is for."""
    settings = AuditSettings.for_rows(rows)
    full = dataclasses.replace(
        FULL,
        auxiliary=rows,
        first_epochs=settings.first_epochs,
        most_epochs=settings.most_epochs,
    )
    plan = make_plan(full, COSTS, minutes)
    assert plan.first_epochs == full.first_epochs
    assert plan.first_epochs <= plan.most_epochs <= full.most_epochs
    # Rows are halved only after the epochs are not doubled any more.
    assert plan.auxiliary == rows or plan.most_epochs == plan.first_epochs
