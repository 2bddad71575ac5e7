"""Plan an audit: what is affordable in the time there is, and what is left out for it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oneway.inversion import TrainingSettings

FRONT_ENDS = ("standardized", "within-label", "leading", "faithful")
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

SHARE_TRAINED = 0.7
"""Of a contest's full price: decoders that trail are given up."""


@dataclass(frozen=True)
class Costs:
    """What was measured before planning.

    Attributes:
        training: Seconds of one epoch per auxiliary row, by decoder width.
        asking: Seconds per query of the release.
        auxiliary: Auxiliary rows there are.
        test: Test queries there are.
    """

    training: Mapping[int, float]
    asking: float
    auxiliary: int
    test: int


@dataclass(frozen=True)
class AuditPlan:
    """Who attacks, with what, for how long.

    Attributes:
        attacks: Registered attacks, each with the same decoders.
        front_ends: Input transforms that compete.
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
    front_ends: tuple[str, ...]
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
    epochs, rows = plan.first_epochs, plan.auxiliary
    decoder = {width: costs.training[width] * rows * epochs for width in plan.widths}
    contest = SHARE_TRAINED * len(plan.front_ends) * sum(decoder.values())
    contests = {"averaging": len(plan.repeats), "adversarial-training": 2}
    train = sum(contest * contests.get(name, 1) for name in plan.attacks)
    questions = rows + costs.test
    if "averaging" in plan.attacks:
        questions += (rows + costs.test) * sum(plan.repeats)
    if "optimising" in plan.attacks:
        questions += 3 * 50 * (costs.test + rows // 8)
    control = costs.training[min(plan.widths)] * min(rows, CONTROL_ROWS) * epochs
    # Two decoders, each with once and twice the epochs, at least.
    plateau = 6 * decoder[max(plan.widths)]
    once = plateau + len(plan.controls) * control
    return once + plan.seeds * (train + questions * costs.asking)


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
    narrower = ", ".join(str(width) for width in sorted(full.widths)[:-1])
    plan = full
    steps: list[tuple[str, Callable[[AuditPlan], AuditPlan]]] = [
        (
            f"decoders of width {narrower}",
            lambda plan: dataclasses.replace(plan, widths=(max(plan.widths),)),
        ),
        ("the optimising attacker", _without("optimising")),
        (
            f"averaging of more than {min(full.repeats)} answers",
            lambda plan: (
                dataclasses.replace(plan, repeats=(min(plan.repeats),))
                if "averaging" in plan.attacks
                else plan
            ),
        ),
        (
            f"{full.seeds - 1} of {full.seeds} seeds",
            lambda plan: dataclasses.replace(plan, seeds=1),
        ),
        (
            "the faithful front end",
            lambda plan: dataclasses.replace(
                plan,
                front_ends=tuple(name for name in plan.front_ends if name != "faithful")
                or plan.front_ends,
            ),
        ),
        ("the adversarial-training attacker", _without("adversarial-training")),
        (
            f"decoders of another width than {min(full.widths)}",
            lambda plan: dataclasses.replace(plan, widths=(min(full.widths),)),
        ),
    ]
    limit = None if minutes is None else 60 * minutes
    left_out = []
    for told, change in steps:
        if limit is None or estimate_seconds(plan, costs) <= limit:
            break
        changed = change(plan)
        if changed != plan:
            plan = changed
            left_out.append(told)
    while (
        limit is not None
        and estimate_seconds(plan, costs) > limit
        and plan.auxiliary // 2 >= least_rows
    ):
        plan = dataclasses.replace(plan, auxiliary=plan.auxiliary // 2)
    if plan.auxiliary < full.auxiliary:
        left_out.append(f"{full.auxiliary - plan.auxiliary} of {full.auxiliary} auxiliary rows")
    if len(plan.widths) == 1 and plan.widths != (max(full.widths),):
        left_out = [told for told in left_out if not told.startswith("decoders of width")]
    return dataclasses.replace(
        plan, left_out=tuple(left_out), seconds=estimate_seconds(plan, costs)
    )


def _without(attack: str) -> Callable[[AuditPlan], AuditPlan]:
    def change(plan: AuditPlan) -> AuditPlan:
        kept = tuple(name for name in plan.attacks if name != attack)
        return dataclasses.replace(plan, attacks=kept)

    return change
