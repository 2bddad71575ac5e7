"""Plan an audit: what is affordable in the time there is, and what is left out for it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

from oneway.attacks.optimising import PULLS, STEPS
from oneway.audit.controls import CONTROLS
from oneway.inversion import TrainingSettings

INPUT_TRANSFORMS = ("standardized", "within-label", "leading", "faithful")
"""Every input transform competes in a full audit."""

WIDTHS = (16, 32)
"""Channels of the last hidden layer of a decoder."""

FIRST_EPOCHS = 6
"""Where the search for the plateau begins; doubled until twice the epochs gain nothing."""

LEAST_STEPS = 600
"""Steps that a decoder takes at least, in the shortest training that is tried."""

MOST_EPOCHS = 48

REPEATS = (10, 100)
"""How often averaging asks a random API."""

CONTROL_ROWS = 4000
"""Auxiliary images that each control is trained on: a quick form."""

CONTROL_TEST = 2000
"""Test queries that each control is graded on."""

SINGLE_QUERIES = 200
"""Single queries that are timed at the end, with and without the defense."""

SHARE_TRAINED = 0.7
"""Of a contest's full price: decoders that trail are given up."""


@dataclass(frozen=True)
class Costs:
    """What was measured before planning.

    Attributes:
        training: Seconds of one epoch per auxiliary row, by a decoder's input transform and width.
        asking: Seconds per query of the release, of many at once.
        single: Seconds of a query by itself.
        auxiliary: Auxiliary rows there are.
        test: Test queries there are.
    """

    training: Mapping[tuple[str, int], float]
    asking: float
    single: float
    auxiliary: int
    test: int


@dataclass(frozen=True)
class AuditPlan:
    """Who attacks, with what, for how long.

    Attributes:
        attacks: Registered attacks, each with the same decoders.
        input_transforms: Input transforms that compete.
        widths: Decoder widths that compete.
        repeats: How often averaging asks.
        most_epochs: Where the search for the plateau ends.
        first_epochs: Where it begins.
        controls: Names of controls that are run.
        seeds: How many times all is repeated.
        auxiliary: How many auxiliary rows are used.
        left_out: What a full audit has besides, in words.
        seconds: What it is expected to take.
    """

    attacks: tuple[str, ...]
    input_transforms: tuple[str, ...]
    widths: tuple[int, ...]
    repeats: tuple[int, ...]
    most_epochs: int
    controls: tuple[str, ...]
    seeds: int
    auxiliary: int
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0
    first_epochs: int = FIRST_EPOCHS


def first_epochs_for(rows: int) -> int:
    """Return where the search for the plateau begins with so many auxiliary rows.

    With few rows an epoch has few steps, so that there must be more of them.
    """
    steps = -(-rows // TrainingSettings().batch_size)
    return max(FIRST_EPOCHS, -(-LEAST_STEPS // steps))


def settings_for(epochs: int) -> TrainingSettings:
    """Return how every decoder of an audit is trained: one cycle of so many epochs."""
    return TrainingSettings(
        epochs=epochs,
        learning_rate=0.01,
        schedule="one-cycle",
        grace=max(2, epochs // 3),
    )


def estimate_seconds(plan: AuditPlan, costs: Costs) -> float:
    """Return what a plan is expected to take, at the first number of epochs that is tried."""
    epochs, rows, price = plan.first_epochs, plan.auxiliary, costs.training
    entries = product(plan.input_transforms, plan.widths)
    contest = SHARE_TRAINED * rows * epochs * sum(price[entry] for entry in entries)
    selections = {"averaging": len(plan.repeats), "adversarial-training": 2}
    train = sum(contest * selections.get(name, 1) for name in plan.attacks)
    questions = rows + costs.test
    if "averaging" in plan.attacks:
        questions += (rows + costs.test) * sum(plan.repeats)
    if "optimising" in plan.attacks:
        # A step there and back takes about three answers; own held-out rows are searched for, too.
        questions += 3 * sum(STEPS) * len(PULLS) * (costs.test + rows // 8)
    # Two decoders, each with once and twice the epochs, at least.
    plateau = 6 * rows * epochs * price[plan.input_transforms[0], max(plan.widths)]
    timing = 2 * SINGLE_QUERIES * costs.single
    once = plateau + _control_seconds(plan, costs) + timing
    return once + plan.seeds * (train + questions * costs.asking)


def _control_seconds(plan: AuditPlan, costs: Costs) -> float:
    """Return what controls take: a decoder each, and one for each kind of reference."""
    controls = [CONTROLS[name] for name in plan.controls]
    plain = {control.input_transform for control in controls if control.reference is None}
    input_transforms = [control.input_transform for control in controls]
    input_transforms += [
        *plain,
        *(one.input_transform for one in controls if one.reference is not None),
    ]
    rows = min(plan.auxiliary, CONTROL_ROWS)
    seconds = sum(
        costs.training[input_transform, min(plan.widths)] for input_transform in input_transforms
    )
    if any(control.attack == "averaging" for control in controls):
        asked = (rows + min(costs.test, CONTROL_TEST)) * costs.asking
    else:
        asked = 0.0
    return seconds * rows * plan.first_epochs + asked


def make_plan(
    full: AuditPlan, costs: Costs, minutes: float | None, *, least_rows: int = 1000
) -> AuditPlan:
    """Leave out of a full plan what does not fit, the least missed first.

    Args:
        full: Everything that applies to the release.
        costs: What was measured.
        minutes: What there is; None: no limit.
        least_rows: Auxiliary rows that are always used, where there are so many.

    Returns:
        The plan, with what it leaves out. If even the least plan does not fit, that plan: its
        ``seconds`` tell.
    """
    steps: list[Callable[[AuditPlan], AuditPlan]] = [
        lambda plan: dataclasses.replace(plan, widths=(max(plan.widths),)),
        _without("optimising"),
        lambda plan: (
            dataclasses.replace(plan, repeats=(min(plan.repeats),))
            if "averaging" in plan.attacks
            else plan
        ),
        lambda plan: dataclasses.replace(plan, seeds=1),
        lambda plan: dataclasses.replace(
            plan,
            input_transforms=tuple(name for name in plan.input_transforms if name != "faithful")
            or plan.input_transforms,
        ),
        _without("adversarial-training"),
        lambda plan: dataclasses.replace(plan, widths=(min(full.widths),)),
    ]
    limit = math.inf if minutes is None else 60 * minutes
    plan = full
    for change in steps:
        if estimate_seconds(plan, costs) <= limit:
            break
        plan = change(plan)
    # The epochs stay: steps are what takes the time, so that to keep their number would save next
    # to nothing. The search for the plateau gives few rows more epochs where that gains.
    while estimate_seconds(plan, costs) > limit and plan.auxiliary // 2 >= least_rows:
        plan = dataclasses.replace(plan, auxiliary=plan.auxiliary // 2)
    return dataclasses.replace(
        plan, left_out=_left_out(plan, full), seconds=estimate_seconds(plan, costs)
    )


def _left_out(plan: AuditPlan, full: AuditPlan) -> tuple[str, ...]:
    """Say what a full plan has besides, in the order in which it is left out."""
    gone = set(full.attacks) - set(plan.attacks)
    widths = ", ".join(str(width) for width in sorted(set(full.widths) - set(plan.widths)))
    wide = max(full.widths) in plan.widths
    rows = full.auxiliary - plan.auxiliary
    told = {
        f"decoders of width {widths}": widths and wide,
        "the optimising attacker": "optimising" in gone,
        f"averaging of more than {min(full.repeats)} answers": plan.repeats != full.repeats,
        f"{full.seeds - plan.seeds} of {full.seeds} seeds": plan.seeds < full.seeds,
        "the faithful input transform": plan.input_transforms != full.input_transforms,
        "the adversarial-training attacker": "adversarial-training" in gone,
        f"decoders of another width than {min(full.widths)}": not wide,
        f"{rows} of {full.auxiliary} auxiliary rows": rows,
    }
    return tuple(words for words, missing in told.items() if missing)


def _without(attack: str) -> Callable[[AuditPlan], AuditPlan]:
    def change(plan: AuditPlan) -> AuditPlan:
        kept = tuple(name for name in plan.attacks if name != attack)
        return dataclasses.replace(plan, attacks=kept)

    return change
