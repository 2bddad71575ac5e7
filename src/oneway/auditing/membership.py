"""Audit a release for membership inference: a ladder of attackers, baselines, G and a verdict."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from oneway.attacks.averaging import mean_answer
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.auditing.deadline import Deadline
from oneway.auditing.references import (
    Answers,
    Candidates,
    Queries,
    References,
    TrainReference,
    reference_loss,
)
from oneway.checks import check_count
from oneway.contracts import (
    Defense,
    MembershipKnowledge,
    RepeatableDefense,
    Target,
    TrainingData,
)
from oneway.data import ProgressCallback, no_progress
from oneway.defenses import (
    build_defense,
    needs_state,
    needs_surrogate,
    trained_defense,
    training_options,
)
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.membership import ALWAYS, GradedAttack, grade_membership
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import Environment, Provenance, TypedRecord, environment
from oneway.evaluation.store import fingerprint
from oneway.metrics import Interval
from oneway.metrics.membership import (
    TotalVariation,
    membership_gap,
    percentile_interval,
    resampled_counts,
    total_variation,
)
from oneway.options import Options, option
from oneway.releases import guarded_release

MEASURES = ("area", "low", "lowest")
"""Measures by their name in records: area under the curve, TPR at 1 % and at .1 %."""

ROWS_PER_VECTOR = 4
"""Least candidates for each distinct released vector, for the total variation of a release."""

PLANTED_NATS = 2.0
"""Lead that members' true labels get in the control with a planted signal."""

LOOSE = 0.02
"""Loss in nats beyond twice the model's from which reference models fit loosely."""

REPEATS, SLOW_REPEATS = 100, 10
"""Answers to each query that attackers of a random release average; fewer of a defense that draws
them one by one."""

NUMBERS_AT_ONCE = 2**22
"""Confidences that are answered at once where queries are repeated."""

REFERENCES_SHARE = 0.6
"""Largest share of the run time that reference models are trained."""

LADDERS = 6
"""Further runs of the attackers that must fit after those on labels: clean scores, the release
before both kinds of reference models, two controls, and one in reserve."""

SAME, OWN = "the release itself", "own copies of it"
"""What an attacker puts before reference models."""


def _check_pairs(name: str, value: int) -> None:
    check_count(name, value, least=0)
    if value % 2:
        raise InvalidOptionError(
            f"{name} must be an even number of models, but got {value}. Take 8."
        )


class MembershipSettings(Options):
    """Size of a membership audit."""

    references: int = option(
        "Reference models, even: in pairs. Fewer than 4 allow no games, and so no stack.",
        default=8,
        check=_check_pairs,
    )
    copies: int = option(
        "Jittered copies of each candidate that are asked about, too.", default=2, least=0
    )
    controls: bool = option(
        "Whether the controls are run. :func:`oneway.audit` takes its own.", default=True
    )
    seed: int = option(
        "Seed of every random stream. :func:`oneway.audit` takes its own.", default=0, least=0
    )
    train: TrainReference | None = option(
        "Trains a reference model on inputs, labels and the number of classes. None: the model's "
        "own architecture where it can be trained anew, else one hidden layer, until it fits as "
        "closely as the model.",
        default=None,
    )
    attacks: tuple[str, ...] = option(
        "Registered names of the attacks.", default=tuple(MEMBERSHIP_ATTACKS)
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InvalidOptionError: A value is outside its range.
            UnknownNameError: An attack does not exist.
        """
        super().__post_init__()
        for name in self.attacks:
            UnknownNameError.check("membership attack", name, MEMBERSHIP_ATTACKS)


@dataclass(frozen=True)
class AttackMeasures:
    """Measures of an attack on a release, with 95 % intervals over candidates.

    Attributes:
        release: ``"clean"``, ``"label only"`` or ``"release"``.
        attack: Registered name.
        reference_release: What stands before the attacker's reference models.
        area: Area under the ROC curve.
        low: True positive rate at a false positive rate of 1 %.
        lowest: The same at .1 %; None below 10,000 non-members.
        game_area: Mean area in games against reference models; None without games.
        game_low: Mean true positive rate at 1 % there.
    """

    release: str
    attack: str
    reference_release: str
    area: Interval
    low: Interval
    lowest: Interval | None
    game_area: float | None
    game_low: float | None


@dataclass(frozen=True)
class MeasuredGap:
    """What the strongest attackers reach by one measure.

    Attributes:
        clean: On clean scores.
        label: On the label alone: the floor.
        released: On the release.
        attacks: The strongest attack on each of the three: clean, label only, release.
        leak: ``clean - label``: what scores leak beyond the label.
        closed: G_mem; None where ``leak`` cannot be told from 0.
    """

    clean: Interval
    label: Interval
    released: Interval
    attacks: tuple[str, ...]
    leak: Interval
    closed: Interval | None


@dataclass(frozen=True)
class MembershipControl:
    """A control: an input whose outcome is known.

    Attributes:
        name: ``"planted signal"`` or ``"random membership"``.
        area: Area under the curve of the strongest attacker.
        passed: Whether the interval is as it must be: above .5, or around .5.
    """

    name: str
    area: Interval
    passed: bool


@dataclass(frozen=True, kw_only=True)
class MembershipRecord(TypedRecord):
    """All results of a membership audit.

    Attributes:
        release: Name of the audited defense.
        options: Its options.
        members: Number of members.
        non_members: Number of non-members.
        population: Number of rows of the attacker's population.
        references: Number of reference models.
        copies: Jittered copies of each candidate.
        seed: Seed of the audit.
        accuracy: Share of right labels: among members, and among non-members.
        l1: Mean L1 distance of clean and released probabilities over candidates.
        attacks: Every attack on every release.
        gaps: Strongest attackers and G_mem, by measure: ``area``, ``low``, ``lowest``.
        total_variation: Of (released vector, true label), for a release of few vectors; None for
            others.
        controls: Controls; empty if they were left out.
        nothing_to_defend: Whether clean scores leak no more than the label, as far as this audit
            can tell.
        notes: What could not be measured, or is wrong with the guard, in sentences.
        environment: Software and hardware.
        provenance: Code, date, data and model.
        left_out: What was left out for lack of time, in words.
    """

    subject: ClassVar[str] = "a membership audit"
    release: str
    options: Mapping[str, Any]
    members: int
    non_members: int
    population: int
    references: int
    copies: int
    seed: int
    accuracy: tuple[float, ...]
    l1: float
    attacks: tuple[AttackMeasures, ...]
    gaps: Mapping[str, MeasuredGap]
    total_variation: TotalVariation | None
    controls: tuple[MembershipControl, ...]
    nothing_to_defend: bool
    environment: Environment
    provenance: Provenance
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def controls_failed(self) -> tuple[str, ...]:
        """Names of the controls that failed."""
        return tuple(each.name for each in self.controls if not each.passed)


@dataclass(frozen=True)
class _Released:
    """What one release answers: the attacked model, and each reference model."""

    target: Answers
    references: Sequence[Answers]
    reference_release: str


Ladders = Mapping[str, Mapping[str, list[GradedAttack]]]
"""Graded attacks by ``"label only"``, ``"clean"`` or ``"release"``, and by what stands before the
attacker's reference models."""


@dataclass(frozen=True)
class MeasuredRelease:
    """What attackers reach on a release, and what it costs.

    Attributes:
        ladders: All graded attacks.
        accuracy: Share of right released labels: among members, and among non-members.
        l1: Mean L1 distance of clean and released probabilities over candidates.
        total_variation: See :class:`MembershipRecord`.
        notes: What could not be measured, or is wrong with the guard, in sentences.
    """

    ladders: Ladders
    accuracy: tuple[float, ...]
    l1: float
    total_variation: TotalVariation | None
    notes: tuple[str, ...] = ()

    def offered(self, name: str) -> dict[str, GradedAttack]:
        """Return all attacks on a release, by what they read, reference models and their name.

        Whoever sees scores sees the label: attacks on the label alone take part everywhere.

        Args:
            name: ``"clean"``, ``"label only"`` or ``"release"``.
        """
        return {
            f"{read}, {known}: {each.attack}": each
            for read in dict.fromkeys(("label only", name))
            for known, ladder in self.ladders[read].items()
            for each in ladder
        }

    def strongest(self, measure: str) -> dict[str, GradedAttack]:
        """Return the attack that reaches most on clean scores, the label alone and the release.

        It is chosen on the graded candidates, so that chance favors the attackers, of all three.

        Args:
            measure: One of ``MEASURES``.
        """

        def reached(each: GradedAttack) -> float:
            values = getattr(each.measures, measure)
            return 0.0 if values is None else float(values[0])

        return {
            name: max(self.offered(name).values(), key=reached)
            for name in ("clean", "label only", "release")
        }

    def gaps(self) -> dict[str, MeasuredGap]:
        """Return the strongest attackers and G_mem, by measure."""
        found = {}
        for measure in MEASURES:
            best = self.strongest(measure)
            draws = [getattr(each.measures, measure) for each in best.values()]
            if any(row is None for row in draws):
                continue
            clean, label, released = draws
            leak = percentile_interval(clean - label)
            closed = percentile_interval(membership_gap(clean, released, label))
            found[measure] = MeasuredGap(
                percentile_interval(clean),
                percentile_interval(label),
                percentile_interval(released),
                tuple(each.attack for each in best.values()),
                leak,
                closed if leak.low > 0 else None,
            )
        return found


def members_in_table(defense: Defense, members: Tensor) -> list[str]:
    """Return a sentence if a codebook was fitted to members: then its table reveals them.

    Args:
        defense: The audited defense.
        members: ``(N, ...)`` rows that the model was trained on.
    """
    if not isinstance(defense, CodebookRelease) or defense.fitted is None:
        return []
    shared = defense.fitted.judge(members).shared
    if not shared:
        return []
    return [
        f"The codebook was fitted to {shared} members: its table reveals them. Fit it to queries "
        "that the model was not trained on."
    ]


def _best_in_games(ladder: Sequence[GradedAttack]) -> GradedAttack:
    """Return the attack with the largest area in games, which the true members do not decide.

    Without games it is the last of ``ALWAYS``.
    """
    games = [each for each in ladder if each.game_area is not None]
    if games:
        return max(games, key=lambda each: each.game_area or 0.0)
    return next(each for each in ladder if each.attack == ALWAYS[-1])


class MembershipAudit:
    """Trains reference models once, and attacks any number of releases with them."""

    def __init__(
        self,
        target: Target,
        rows: Candidates,
        settings: MembershipSettings,
        store: Store,
        *,
        seconds: float = math.inf,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Ask the model about all rows, and train the reference models.

        Args:
            target: The undefended model.
            rows: Candidates and population.
            settings: Size of the audit.
            store: Store of reference models: the same serve every release.
            seconds: Target run time of the audit of one release.
            report: Progress callback.
        """
        self.rows, self.settings, self.report = rows, settings, report
        self.deadline = Deadline.after(seconds)
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self.queries = Queries.of(rows, settings.copies)
        self.target = self.queries.ask(target)
        own = self.target.candidates[:, 0]
        inside = rows.members
        loss = float(functional.cross_entropy(own[inside].double(), rows.labels[inside]))
        classes = own.shape[-1]
        for labels in (rows.labels, rows.population_labels):
            if int(labels.min()) < 0 or int(labels.max()) >= classes:
                raise InvalidOptionError(
                    f"labels must be classes of the model, from 0 to {classes - 1}, but some are "
                    "outside. Check the order of the classes."
                )
        made = References(target, rows, settings.references, settings.seed, store, settings.train)
        self.references = made.answers(
            self.queries, classes, loss, report, self.deadline.part(REFERENCES_SHARE)
        )
        trained = len(self.references)
        self.reference_members = made.members[:trained]
        if trained < settings.references:
            missing = settings.references - trained
            self.left_out.append(f"{missing} of {settings.references} reference models")
        self._compare_fits(loss)
        self.attacks = settings.attacks
        stream = Stream(settings.seed, "bootstrap of candidates")
        self.counts = resampled_counts(len(inside), stream.generator())
        self._baselines: dict[str, list[GradedAttack]] = {}

    def _compare_fits(self, loss: float) -> None:
        """Note it where reference models fit less closely than the attacked model."""
        fits = [
            reference_loss(each.module, self.rows.inputs[inside], self.rows.labels[inside])
            for each, inside in zip(self.references, self.reference_members, strict=True)
            if each.module is not None
        ]
        if fits and sum(fits) / len(fits) > 2 * loss + LOOSE:
            self.notes.append(
                f"Reference models fit their rows with a mean loss of {sum(fits) / len(fits):.3f}, "
                f"and the model with {loss:.3f}: attackers who train better ones may find more."
            )

    def knowledge(self, released: _Released) -> MembershipKnowledge:
        """Return what an attacker of a release has, on the CPU, where all attackers work."""
        target, references = released.target, released.references
        return MembershipKnowledge(
            self.rows.inputs.cpu(),
            self.rows.labels.cpu(),
            target.candidates,
            self.rows.population.cpu(),
            self.rows.population_labels.cpu(),
            target.population,
            _stacked([each.candidates for each in references], target.candidates),
            self.reference_members,
            _stacked([each.population for each in references], target.population),
        )

    def release(self, defense: Defense, copies: Sequence[Defense] | None = None) -> _Released:
        """Put a defense before the model, and the same or own copies before reference models.

        Args:
            defense: The audited defense.
            copies: A defense for each reference model; None: the audited defense itself.
        """
        each = [defense] * len(self.references) if copies is None else copies
        return _Released(
            self._behind(defense, self.target),
            [self._behind(one, it) for one, it in zip(each, self.references, strict=True)],
            SAME if copies is None else OWN,
        )

    def own_copies(self, spec: ReleaseSpec) -> list[Defense] | None:
        """Fit the attacker's own copies of a defense, one to each reference model.

        Returns:
            None for a defense without a fitted state: its own copy is the defense itself.

        Raises:
            InvalidTensorError: The population is too small to fit the defense to.
            InvalidOptionError: Likewise.
        """
        if not needs_state(spec.defense):
            return None
        found = []
        for number, (inside, answers) in enumerate(
            zip(self.reference_members, self.references, strict=True)
        ):
            self.report("fit the attacker's own copies", number / len(self.references))
            found.append(self.fit(spec, answers, inside, f"copy {number}"))
        self.report("fit the attacker's own copies", 1.0)
        return found

    def fit(self, spec: ReleaseSpec, answers: Answers, inside: Tensor, purpose: str) -> Defense:
        """Build a defense from its name, fitted to the population's scores by a model.

        Args:
            spec: Name and options.
            answers: Clean scores of the model that the defense stands before.
            inside: ``(N)`` bool, the candidates that it was trained on.
            purpose: Name of the random stream.

        Raises:
            InvalidOptionError: The defense needs a surrogate.
        """
        name = spec.defense
        if needs_surrogate(name):
            raise InvalidOptionError(
                f"a membership audit cannot build {name!r}, which needs a surrogate inverter. Pass "
                "the defense itself as guard=."
            )
        generator = Stream(self.settings.seed, f"{spec.name}, {purpose}").generator()
        state = None
        if needs_state(name):
            material = TrainingData(
                answers.module,
                self.rows.inputs[inside],
                self.rows.labels[inside],
                self.rows.population,
                answers.population[:, 0],
                auxiliary_labels=self.rows.population_labels,
            )
            options = training_options(name, spec.options)
            stream = Stream(self.settings.seed, f"{spec.name}, {purpose}, weights")
            state, _ = stream.call(
                lambda: trained_defense(name).train(material, generator=generator, **options),
                self.rows.inputs.device,
            )
        return build_defense(name, spec.options, state=state, generator=generator)

    def measured(
        self, spec: ReleaseSpec, guard: Defense | None = None, *, own_copies: bool = True
    ) -> "MeasuredRelease":
        """Attack clean scores, the label alone, and a release.

        Args:
            spec: Name and options of the defense.
            guard: The defense itself, already fitted; None: it is built from ``spec``.
            own_copies: Whether attackers also fit copies of the defense to reference models.
        """
        baselines = self._graded_baselines()
        floor = baselines["label only"][SAME]
        self.report(f"attack {spec.name}", 0.0)
        defense = guard or self.fit(spec, self.target, self.rows.members, "release")
        attacked = self.release(defense)
        graded = {SAME: self._grade(self.knowledge(attacked), floor)}
        notes = [*self.notes, *members_in_table(defense, self.rows.inputs[self.rows.members])]
        once = attacked.target
        if not defense.deterministic:
            once = self._behind(defense, self.target, repeats=1)
            notes.append(
                f"Answers are random: attackers read the mean of {_repeats(defense)} answers to "
                "each query."
            )
        copies = None
        try:
            if own_copies and needs_state(spec.defense) and self.deadline.left() < 0:
                self.left_out.append("the attacker's own copies of the defense")
            elif own_copies:
                copies = self.own_copies(spec)
        except (InvalidOptionError, InvalidTensorError) as error:
            if guard is None:
                raise
            notes.append(f"No attacker has own copies of the guard: {error}")
        if copies is not None:
            graded[OWN] = self._grade(self.knowledge(self.release(defense, copies)), floor)
        logits = self.target.candidates[:, 0]
        clean = guarded_release(Identity(), logits).confidences.double().cpu()
        shown = once.candidates[:, 0]
        right = shown.argmax(-1) == self.rows.labels.cpu()
        sides = (self.rows.members, ~self.rows.members)
        return MeasuredRelease(
            {**baselines, "release": graded},
            tuple(float(right[side].double().mean()) for side in sides),
            float((clean - shown).abs().sum(-1).mean()),
            self._total_variation(shown),
            tuple(notes),
        )

    def run(self, spec: ReleaseSpec, guard: Defense | None = None) -> MembershipRecord:
        """Attack a release, and return the record.

        Args:
            spec: Name and options of the defense.
            guard: The defense itself, already fitted; None: it is built from ``spec``.
        """
        found, rows = self.measured(spec, guard), self.rows
        gaps = found.gaps()
        controls = self.settings.controls
        if controls and self.deadline.left() < 0:
            controls = False
            self.left_out.append("the controls")
        return MembershipRecord(
            release=spec.name,
            options=dict(spec.options),
            members=int(rows.members.sum()),
            non_members=int((~rows.members).sum()),
            population=len(rows.population),
            references=len(self.references),
            copies=self.settings.copies,
            seed=self.settings.seed,
            accuracy=found.accuracy,
            l1=found.l1,
            attacks=tuple(
                _measures(release, known, attack)
                for release, ladders in found.ladders.items()
                for known, ladder in ladders.items()
                for attack in ladder
            ),
            gaps=gaps,
            total_variation=found.total_variation,
            controls=self.controls if controls else (),
            nothing_to_defend=all(gap.leak.low <= 0 for gap in gaps.values()),
            environment=environment(rows.inputs.device),
            provenance=Provenance.now(
                fingerprint(rows.inputs, rows.labels, rows.population, rows.population_labels), None
            ),
            notes=found.notes,
            left_out=tuple(self.left_out),
        )

    @cached_property
    def controls(self) -> tuple[MembershipControl, ...]:
        """Attack scores with a planted signal, and scores of which membership is random."""
        clean = self.knowledge(self.release(Identity()))
        generator = Stream(self.settings.seed, "controls").generator()
        members = self.rows.members
        planted = self._grade(self.knowledge(self._planted()))
        shuffled = members[torch.randperm(len(members), generator=generator)]
        pairs = clean.reference_members[::2]
        drawn = [row[torch.randperm(len(row), generator=generator)] for row in pairs]
        masks = _stacked([half for row in drawn for half in (row, ~row)], members)
        guessed = grade_membership(
            replace(clean, reference_members=masks), shuffled, self.counts, attacks=self.attacks
        )
        areas = [
            percentile_interval(_best_in_games(ladder).measures.area)
            for ladder in (planted, guessed)
        ]
        return (
            MembershipControl("planted signal", areas[0], areas[0].low > 0.5),
            MembershipControl("random membership", areas[1], areas[1].low <= 0.5),
        )

    def _planted(self) -> _Released:
        """Return clean answers in which members' true labels lead by more."""

        def led(answers: Answers, inside: Tensor) -> Answers:
            logits = answers.candidates.clone()
            lead = PLANTED_NATS * inside.to(logits).view(-1, 1, 1)
            index = self.rows.labels.view(-1, 1, 1).expand(*logits.shape[:2], 1)
            logits.scatter_add_(-1, index, lead.expand(index.shape))
            return self._behind(Identity(), Answers(None, logits, answers.population))

        pairs = zip(self.references, self.reference_members, strict=True)
        return _Released(led(self.target, self.rows.members), [led(*pair) for pair in pairs], SAME)

    def _behind(self, defense: Defense, answers: Answers, repeats: int | None = None) -> Answers:
        """Return the released confidences of all queries, on the CPU.

        Args:
            defense: The defense.
            answers: Clean scores.
            repeats: Answers to each query, of which the mean counts; None: as many as an attacker
                asks for, who averages noise away.
        """
        count = _repeats(defense) if repeats is None else repeats

        def released(logits: Tensor, inputs: Tensor) -> Tensor:
            shown = inputs.flatten(0, 1) if defense.requires_input else None
            rows = logits.flatten(0, 1)
            if count == 1:
                answer = guarded_release(defense, rows, shown).confidences
            else:
                at_once = max(1, NUMBERS_AT_ONCE // (count * rows.shape[-1]))
                images = itertools.repeat(None) if shown is None else shown.split(at_once)
                answer = torch.cat(
                    [
                        mean_answer(guarded_release(defense, *part, repeats=count).confidences)
                        for part in zip(rows.split(at_once), images, strict=False)
                    ]
                )
            return answer.view(logits.shape).double().cpu()

        return Answers(
            answers.module,
            released(answers.candidates, self.queries.candidates),
            released(answers.population, self.queries.population),
        )

    def _grade(
        self, knowledge: MembershipKnowledge, floor: Sequence[GradedAttack] = ()
    ) -> list[GradedAttack]:
        return grade_membership(
            knowledge, self.rows.members, self.counts, floor, attacks=self.attacks
        )

    def _attacked_labels(self) -> list[GradedAttack]:
        """Return the ladder on labels alone, and leave out what does not fit the further ones.

        Clean scores and the release face the same attackers: otherwise a gap would seem closed
        where time ran out.
        """
        late = self.deadline.part(1 / 2)
        knowledge = self.knowledge(self.release(LabelOnly()))
        ladder = grade_membership(
            knowledge,
            self.rows.members,
            self.counts,
            attacks=self.attacks,
            is_late=lambda: late.left() < 0,
        )
        spent, left, kept = 0.0, self.deadline.left() / LADDERS, set(ALWAYS)
        for each in sorted(ladder, key=lambda each: each.seconds):
            spent += each.seconds
            if spent <= left:
                kept.add(each.attack)
        games = {"candidate_scores"} if len(knowledge.games) > 1 else set()
        applying = [
            name
            for name, attack in MEMBERSHIP_ATTACKS.items()
            if name in self.attacks and attack.applies(knowledge.available | games)
        ]
        self.attacks = tuple(name for name in applying if name in kept)
        self.left_out += [f"the attacker {name}" for name in applying if name not in kept]
        return ladder

    def _graded_baselines(self) -> dict[str, dict[str, list[GradedAttack]]]:
        """Return the ladder on the label alone and on clean scores, run once."""
        if not self._baselines:
            self.report("attack label only", 0.0)
            floor = self._attacked_labels()
            self.report("attack clean", 0.0)
            clean = self._grade(self.knowledge(self.release(Identity())), floor)
            self._baselines = {"label only": floor, "clean": clean}
        return {name: {SAME: ladder} for name, ladder in self._baselines.items()}

    def _total_variation(self, shown: Tensor) -> TotalVariation | None:
        distinct, cells = shown.unique(dim=0, return_inverse=True)
        if len(distinct) * ROWS_PER_VECTOR > len(shown):
            return None
        generator = Stream(self.settings.seed, "total variation").generator()
        return total_variation(
            cells, self.rows.labels.cpu(), self.rows.members, generator=generator
        )


def _repeats(defense: Defense) -> int:
    """Return how many answers to each query an attacker averages."""
    if defense.deterministic:
        return 1
    return REPEATS if isinstance(defense, RepeatableDefense) else SLOW_REPEATS


def _stacked(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return stacked tensors; for none, an empty tensor of rows like the given one."""
    return torch.stack(list(rows)) if rows else like.new_empty((0, *like.shape))


def _measures(release: str, known: str, graded: GradedAttack) -> AttackMeasures:
    measures = graded.measures
    return AttackMeasures(
        release,
        graded.attack,
        known,
        percentile_interval(measures.area),
        percentile_interval(measures.low),
        None if measures.lowest is None else percentile_interval(measures.lowest),
        graded.game_area,
        graded.game_low,
    )
