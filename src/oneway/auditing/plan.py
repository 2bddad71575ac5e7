"""Settings of an audit, and a plan that fits the target run time, with what it leaves out."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oneway.attacks import Workload, inversion_attacks
from oneway.auditing.controls import CONTROLS
from oneway.checks import check_count
from oneway.evaluation.detection import detection_multiplications
from oneway.evaluation.matching import matching_queries
from oneway.evaluation.settings import check_input_transforms
from oneway.inversion import TrainingSettings, decoder_grid
from oneway.options import Options, option

SEEDS = 3
"""Default number of seeds, and the least number for results that are published."""

FULL_AUDIT_TRANSFORMS = ("standardized", "within-label", "leading", "faithful")
"""Input transforms of a full audit: the whole registry, the most robust first."""

WIDTHS = (16, 32)
"""Channels of the last hidden layer of a decoder."""

FIRST_EPOCHS = 6
"""Epochs at which the search for convergence begins."""

LEAST_STEPS = 600
"""Least steps of a decoder in the shortest training of that search."""

MOST_EPOCHS = 48
"""Epochs at which the search for convergence ends."""

REPEATS = (10, 100)
"""Numbers of answers to the same query that averaging tries."""

CONTROL_ROWS = 4000
"""Most auxiliary images that decoders of controls are trained on."""

CONTROL_TEST = 2000
"""Most test queries that controls are graded on."""

SINGLE_QUERIES = 200
"""Single queries that are timed at the end, with and without the defense."""

SHARE_TRAINED = 0.7
"""Expected share of a model selection's epochs: training stops early for decoders that trail."""

LEAST_ROWS = 1000
"""Least auxiliary rows that decoders are trained on where time is short."""

LEAST_ROWS_WITHOUT_DECODERS = 250
"""Least auxiliary rows of attackers without decoders where time is short."""


@dataclass(frozen=True)
class Costs:
    """Times and sizes, measured before planning.

    Attributes:
        training: Seconds of an epoch per auxiliary row, by a decoder's input transform and width.
        asking: Seconds per query of the release, in a batch.
        single: Seconds of a query by itself.
        solving: Seconds per multiplication, in float64 linear systems.
        auxiliary: Number of auxiliary rows.
        test: Number of test queries.
        entries: Number of entries of an input, such as pixels.
    """

    training: Mapping[tuple[str, int], float]
    asking: float
    single: float
    solving: float
    auxiliary: int
    test: int
    entries: int

    def slower(self, factor: float) -> "Costs":
        """Return the costs on a machine that takes ``factor`` times as long."""
        times = {name: factor * getattr(self, name) for name in ("asking", "single", "solving")}
        training = {decoder: factor * price for decoder, price in self.training.items()}
        return dataclasses.replace(self, training=training, **times)


@dataclass(frozen=True)
class AuditPlan:
    """Attackers, decoders, controls and run time of an audit.

    Attributes:
        attacks: Registered names of the attacks, each with the same decoders.
        input_transforms: Input transforms in each model selection.
        widths: Decoder widths in each model selection.
        repeats: Numbers of answers to the same query that averaging tries.
        most_epochs: Epochs at which the search for convergence ends, as far as there is time.
        controls: Names of the controls.
        seeds: Number of seeds; each repeats all attacks.
        auxiliary: Number of auxiliary rows that are used.
        left_out: Parts of a full audit that are left out, in words.
        seconds: Expected run time, in seconds.
        first_epochs: Epochs at which the search for convergence begins.
        detection: Whether the detection limit is searched where the attack fails; False in older
            records.
        decoders: Whether decoders are trained. Without decoders there are the attackers that solve
            linear systems or count, and a label-only attacker that knows the mean images.
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
    detection: bool = False
    decoders: bool = True


def first_epochs_for(rows: int) -> int:
    """Return the epochs at which the search for convergence begins.

    With few rows an epoch has few steps, so that there must be more epochs.

    Args:
        rows: Number of auxiliary rows.
    """
    steps = -(-rows // TrainingSettings().batch_size)
    return max(FIRST_EPOCHS, -(-LEAST_STEPS // steps))


def settings_for(epochs: int) -> TrainingSettings:
    """Return the training settings of a decoder of an audit: one cycle of ``epochs``."""
    return TrainingSettings(
        epochs=epochs,
        learning_rate=0.01,
        schedule="one-cycle",
        grace=max(2, epochs // 3),
    )


def estimate_seconds(plan: AuditPlan, costs: Costs, epochs: int | None = None) -> float:
    """Return the expected run time of a plan, in seconds.

    Args:
        plan: The plan.
        costs: Measured costs.
        epochs: Epochs at which decoders converge, a power of two times the first epochs; None:
            twice the first epochs, or the first where the plan ends there.
    """
    attacks = inversion_attacks()
    first, rows, price = plan.first_epochs, plan.auxiliary, costs.training
    if epochs is None:
        epochs = _expected_epochs(plan)
    decoders = decoder_grid(plan.input_transforms, plan.widths)
    leader, *others = (price[decoder.input_transform, decoder.width] for decoder in decoders)
    # The first decoder is trained with each number of epochs on the way; the rest only once.
    searched = (2 * epochs - first) * leader
    selection = rows * (searched + SHARE_TRAINED * epochs * sum(others))
    workload = Workload(rows, costs.test, plan.repeats, costs.entries)
    # An attacker that simulates the defense trains another surrogate first.
    selections = sum(
        attacks[name].model_selections(workload) + ("simulated_defenses" in attacks[name].requires)
        for name in plan.attacks
    )
    extra = sum(attacks[name].extra_queries(workload) for name in plan.attacks)
    queries = rows + costs.test + extra
    timing = 2 * SINGLE_QUERIES * costs.single
    once = _control_seconds(plan, costs, epochs) + timing
    random = any("random" in attacks[name].requires for name in plan.attacks)
    matched = Workload(rows, costs.test, plan.repeats if random else (1,))
    once += matching_queries(matched) * costs.asking
    solved = multiplications(plan, costs)
    if plan.detection:
        solved += detection_multiplications(workload, plan.attacks)
    training = selection * selections if plan.decoders else 0.0
    each = training + queries * costs.asking + solved * costs.solving
    # Similarity is measured once for each attack, on the release and on clean scores.
    return once + plan.seeds * each


def multiplications(plan: AuditPlan, costs: Costs) -> float:
    """Return the multiplications of the attacks of a seed, on clean scores and on the release."""
    attacks = inversion_attacks()
    workload = Workload(plan.auxiliary, costs.test, plan.repeats, costs.entries)
    # Attackers without decoders have nothing in the store: each release is solved anew.
    return sum(
        (1 + attacks[name].attacks_clean_scores) * attacks[name].multiplications(workload)
        for name in plan.attacks
    )


def asking_seconds(plan: AuditPlan, costs: Costs) -> float:
    """Return the seconds of a seed's queries by attackers that go on without decoders."""
    workload = Workload(plan.auxiliary, costs.test, plan.repeats, costs.entries)
    asking = [inversion_attacks()[name] for name in plan.attacks]
    return costs.asking * sum(each.extra_queries(workload) for each in asking if each.falls_back)


def search_seconds(plan: AuditPlan, costs: Costs, longest: int) -> float:
    """Return the expected seconds of a search for convergence by the first decoder.

    Args:
        plan: The plan.
        costs: Measured costs.
        longest: Epochs of the longest training.
    """
    first = decoder_grid(plan.input_transforms, plan.widths)[0]
    price = costs.training[first.input_transform, first.width]
    return (2 * longest - plan.first_epochs) * plan.auxiliary * price


def _expected_epochs(plan: AuditPlan) -> int:
    """Return the epochs at which a search ends where twice the first epochs gain nothing."""
    twice = 2 * plan.first_epochs
    return twice if twice <= plan.most_epochs else plan.first_epochs


def _control_seconds(plan: AuditPlan, costs: Costs, epochs: int) -> float:
    """Return the seconds of controls: a decoder each, and a decoder for each kind of reference."""
    controls = [CONTROLS[name] for name in plan.controls]
    transforms = [control.input_transform for control in controls]
    transforms += {
        control.input_transform
        for control in controls
        if control.reference is None and control.expected != "read"
    }
    transforms += [control.input_transform for control in controls if control.reference is not None]
    rows = min(plan.auxiliary, CONTROL_ROWS)
    width = min(plan.widths)
    seconds = sum(costs.training[transform, width] for transform in transforms if transform)
    return seconds * rows * epochs


@dataclass(frozen=True)
class Reduction:
    """A part of a plan that is left out when time is short.

    Attributes:
        apply: Returns a plan without the part; the same plan where the part is not in it.
        describe: Returns the missing part in words, given the full and the final plan; empty where
            nothing is missing.
    """

    apply: Callable[[AuditPlan], AuditPlan]
    describe: Callable[[AuditPlan, AuditPlan], str]


def reductions(full: AuditPlan) -> list[Reduction]:
    """Return the parts that a full plan may leave out, the least important first."""
    attacks = [inversion_attacks()[name] for name in full.attacks]
    early = [_without(attack.name) for attack in attacks if attack.left_out == "early"]
    late = [_without(attack.name) for attack in attacks if attack.left_out == "late"]
    repeating = [name for name in full.attacks if _repeats(name)]
    return [
        _fewer(
            "widths",
            lambda plan: (max(plan.widths),),
            lambda whole, plan: (
                f"decoders of width {', '.join(map(str, sorted({*whole.widths} - {*plan.widths})))}"
                if max(whole.widths) in plan.widths
                else ""
            ),
        ),
        *early,
        _fewer(
            "repeats",
            lambda plan: (min(plan.repeats),) if {*repeating} & {*plan.attacks} else plan.repeats,
            lambda whole, _: f"{' and '.join(repeating)} of more than {min(whole.repeats)} answers",
        ),
        _fewer(
            "seeds",
            lambda _: 1,
            lambda *_: "",  # those that are left out are counted when the audit has ended
        ),
        _fewer(
            "input_transforms",
            lambda plan: (
                tuple(name for name in plan.input_transforms if name != "faithful")
                or plan.input_transforms
            ),
            lambda *_: "the faithful input transform",
        ),
        _fewer("detection", lambda _: False, lambda *_: "the detection limit"),
        *late,
        _fewer(
            "widths",
            lambda _: (min(full.widths),),
            lambda whole, plan: (
                ""
                if max(whole.widths) in plan.widths
                else f"decoders of another width than {min(whole.widths)}"
            ),
        ),
    ]


def _fewer(
    name: str,
    smaller: Callable[[AuditPlan], Any],
    describe: Callable[[AuditPlan, AuditPlan], str],
) -> Reduction:
    """Return a reduction of one field of a plan, which is described where the field changed."""
    return Reduction(
        lambda plan: dataclasses.replace(plan, **{name: smaller(plan)}),
        lambda whole, plan: (
            "" if getattr(whole, name) == getattr(plan, name) else describe(whole, plan)
        ),
    )


def make_plan(
    full: AuditPlan,
    costs: Costs,
    minutes: float | None,
    *,
    spent: float = 0.0,
    least_rows: int = LEAST_ROWS,
) -> AuditPlan:
    """Leave parts out of a full plan until it fits, the least important first.

    Decoders are left out last, before rows that attackers without decoders need.

    Args:
        full: Plan of a full audit.
        costs: Measured costs.
        minutes: Target run time, in minutes; None: no limit.
        spent: Seconds of the target run time that are over.
        least_rows: Least number of auxiliary rows of decoders, where there are so many.

    Returns:
        The plan, with what it leaves out. If the smallest plan does not fit, it is returned even
        so, and its ``seconds`` exceed the target run time.
    """
    limit = math.inf if minutes is None else 60 * minutes - spent
    plan, steps = full, reductions(full)
    for step in steps:
        if estimate_seconds(plan, costs) <= limit:
            break
        plan = step.apply(plan)
    if estimate_seconds(plan, costs) > limit:
        # Half of the rows would save as much, and would weaken attackers that train no decoder.
        plan = dataclasses.replace(plan, most_epochs=plan.first_epochs)
    # The first epochs stay. With more epochs for fewer rows, the steps and so the time would hardly
    # fall.
    plan = _with_fewer_rows(plan, costs, limit, least_rows)
    if estimate_seconds(plan, costs) > limit:
        plan = without_decoders(dataclasses.replace(plan, auxiliary=full.auxiliary))
        plan = _with_fewer_rows(plan, costs, limit, min(least_rows, LEAST_ROWS_WITHOUT_DECODERS))
    longest = _expected_epochs(plan)
    while 2 * longest <= plan.most_epochs and estimate_seconds(plan, costs, 2 * longest) <= limit:
        longest *= 2
    if 2 * longest <= plan.most_epochs:
        plan = dataclasses.replace(plan, most_epochs=longest)
    missing = [step.describe(full, plan) for step in steps]
    if not plan.decoders:
        gone = [name for name in full.attacks if inversion_attacks()[name].left_out is None]
        gone = [name for name in gone if name not in plan.attacks]
        missing.append(f"all decoders ({', '.join(gone)})")
        if plan.controls != full.controls:
            missing.append("the controls of decoders")
    if plan.auxiliary < full.auxiliary:
        missing.append(f"{full.auxiliary - plan.auxiliary} of {full.auxiliary} auxiliary rows")
    return dataclasses.replace(
        plan,
        left_out=tuple(words for words in missing if words),
        seconds=estimate_seconds(plan, costs),
    )


def without_decoders(plan: AuditPlan) -> AuditPlan:
    """Return a plan whose attackers and controls train no decoders."""
    attacks = inversion_attacks()
    return dataclasses.replace(
        plan,
        attacks=tuple(name for name in plan.attacks if not attacks[name].needs_decoders),
        controls=tuple(name for name in plan.controls if CONTROLS[name].input_transform is None),
        decoders=False,
        most_epochs=plan.first_epochs,
    )


def _with_fewer_rows(plan: AuditPlan, costs: Costs, limit: float, least: int) -> AuditPlan:
    """Halve the auxiliary rows of a plan until it fits into ``limit`` seconds."""
    while estimate_seconds(plan, costs) > limit and plan.auxiliary // 2 >= least:
        plan = dataclasses.replace(plan, auxiliary=plan.auxiliary // 2)
    return plan


def _repeats(name: str) -> bool:
    """Return whether an attack repeats the same query."""
    few, many = (inversion_attacks()[name].extra_queries(Workload(1, 1, (n,))) for n in (1, 2))
    return few != many


def _without(attack: str) -> Reduction:
    def apply(plan: AuditPlan) -> AuditPlan:
        kept = tuple(name for name in plan.attacks if name != attack)
        # A control that vouches for nobody would only take time.
        controls = tuple(name for name in plan.controls if CONTROLS[name].attack != attack)
        return dataclasses.replace(plan, attacks=kept, controls=controls)

    return Reduction(
        apply, lambda _, plan: "" if attack in plan.attacks else f"the {attack} attacker"
    )


class AuditSettings(Options):
    """Settings of an audit."""

    seeds: int = option("Number of seeds; each repeats all attacks.", default=SEEDS)
    minutes: float | None = option(
        "Target run time, in minutes; None: no limit.", default=None, above=0
    )
    controls: bool = option(
        "Whether controls are run. Without controls nothing vouches for the verdict.", default=True
    )
    input_transforms: tuple[str, ...] = option(
        "Input transforms in each model selection.", default=FULL_AUDIT_TRANSFORMS
    )
    widths: tuple[int, ...] = option("Decoder widths in each model selection.", default=WIDTHS)
    first_epochs: int = option(
        "Epochs at which the search for convergence begins.", default=FIRST_EPOCHS
    )
    most_epochs: int = option(
        "Epochs at which the search for convergence ends.", default=MOST_EPOCHS
    )
    repeats: tuple[int, ...] = option(
        "Numbers of answers to the same query that averaging tries.", default=REPEATS
    )

    @classmethod
    def for_rows(cls, rows: int, **others: Any) -> "AuditSettings":
        """Return settings with enough epochs for a number of auxiliary rows.

        Args:
            rows: Number of auxiliary rows.
            **others: Other attributes, by name.
        """
        first = first_epochs_for(rows)
        return cls(first_epochs=first, most_epochs=8 * first, **others)

    def __post_init__(self) -> None:
        """Refuse settings that could not run, before any query.

        Raises:
            InvalidOptionError: A value is outside its range.
            UnknownNameError: An input transform does not exist.
        """
        super().__post_init__()
        check_input_transforms(self.input_transforms)
        check_count("most_epochs", self.most_epochs, least=self.first_epochs)
