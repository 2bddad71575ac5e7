"""Audit somebody's model: the whole ensemble, its controls, and a verdict that can be checked."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from oneway.audit import (
    CONTROLS,
    ControlResult,
    Flag,
    controls_for,
    errors_on,
    failed_controls,
    least_confident,
)
from oneway.benchmark.audit_examples import examples_of
from oneway.benchmark.audit_flags import suspicions
from oneway.benchmark.audit_measures import Measures, Round, measure, utility
from oneway.benchmark.audit_parts import SEED_PART, AuditParts, Found, Groundwork, parts_of
from oneway.benchmark.audit_plan import AuditPlan, Costs, make_plan
from oneway.benchmark.audit_settings import AuditSettings
from oneway.benchmark.defenders import Built
from oneway.benchmark.randomness import Stream
from oneway.benchmark.records import environment, json_values
from oneway.benchmark.spec import is_copied
from oneway.benchmark.store import Store
from oneway.benchmark.subject import Answers, Subject, access, ask, can_follow
from oneway.benchmark.timing import synchronize
from oneway.data import Report, silent
from oneway.defenses.identity import Identity
from oneway.errors import OnewayError
from oneway.inversion import Inverter, RecordInverter, build_inverter
from oneway.metrics import Interval, bootstrap_gap
from oneway.targets import DefendedTarget

GAIN = 0.01
"""Share of the error that twice the epochs must take away to count as a gain."""

TIMED_SECONDS = 0.5
"""How long each decoder is timed before an audit is planned."""

Spread = Callable[[Groundwork, Sequence[str]], Iterator[Found | OnewayError]]
"""Runs the parts of an audit; gives what each found, or the error that it raised on purpose, in
the order of the parts."""


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit found.

    Attributes:
        record: Everything but the rows, as JSON values.
        queries: Columns of one value per seed, attacker and test query.
        pictures: Of the record's examples, by who sees them; empty for records.
    """

    record: dict[str, Any]
    queries: dict[str, Any]
    pictures: dict[str, Any]


class ModelAudit:
    """One audit of one release."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        settings: AuditSettings | None = None,
        *,
        seed: int = 0,
        report: Report = silent,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            subject: What is audited.
            store: Where trained networks are kept; a rerun trains only what is missing.
            settings: How; None: everything.
            seed: The first of them.
            report: Told of progress.
        """
        self.subject, self.store = subject, store
        self.settings = settings or AuditSettings.for_rows(len(subject.auxiliary))
        self.seed, self.report = seed, report
        self.device = subject.auxiliary.device
        self.parts = AuditParts(subject, store, self.settings, seed, report)

    def run(self, spread: Spread | None = None) -> AuditOutcome:
        """Ask, plan, attack, question the attack, and judge.

        Args:
            spread: Runs the parts elsewhere; None: one after the other, here.

        Raises:
            OnewayError: The model fails, or a part of the audit does. If it is a seed, and others
                are done, the audit ends with those.
        """
        begin = time.perf_counter()
        self.report("ask the model", 0.0)
        clean = DefendedTarget(self.subject.target, Identity())(self.subject.auxiliary)
        built = self.parts.build(clean)
        answers = ask(self.subject, built.defense, clean)
        self.report("ask the model", 1.0)
        costs = self._costs(answers, built)
        plan = make_plan(self._full_plan(answers), costs, self.settings.minutes)
        # In random order: files are often sorted by class, and controls take the first rows.
        order = Stream(self.seed, "auxiliary rows").generator()
        rows = torch.randperm(len(clean), generator=order)[: plan.auxiliary].to(self.device)
        answers = dataclasses.replace(
            answers, clean=answers.clean[rows], released=answers.released[rows]
        )
        images = self.subject.auxiliary[rows]
        epochs, plateau = self._find_epochs(plan, answers, images, begin)
        groundwork = Groundwork(plan, rows, clean, answers, epochs)
        parts = parts_of(plan, self.subject.release.defense, self.seed)
        controls = dict[str, ControlResult]()
        flags, rounds, stopped = list(answers.flags), list[Round](), None
        here = self._one_by_one(groundwork, parts, begin)
        for found in here if spread is None else spread(groundwork, parts):
            if isinstance(found, Round):
                rounds.append(found)
            elif isinstance(found, list):
                flags += found
            elif isinstance(found, dict):
                controls = found
            # A model that fails now must not lose the seeds that are done.
            elif rounds:
                stopped = f"{type(found).__name__}: {found}"
                break
            else:
                raise found
        if len(rounds) < plan.seeds and stopped is None:
            late = f"{plan.seeds - len(rounds)} of {plan.seeds} seeds"
            plan = dataclasses.replace(plan, left_out=(*plan.left_out, late))
        measures = measure(rounds[0], self.subject, images, self.seed)
        useful = utility(self.subject, answers, built.defense)
        flags += suspicions(
            rounds, self.settings.seeds, controls, plateau, epochs, built.defense, useful
        )
        record = self._record(plan, rounds, controls, flags, measures, useful, built, answers)
        examples, pictures = examples_of(rounds[0], self.subject, answers)
        record |= {
            "examples": examples,
            "stopped": stopped,
            "epochs": epochs,
            "plateau_shown": plateau,
            "seconds": time.perf_counter() - begin,
        }
        return AuditOutcome(record, measures.queries(rounds), pictures)

    def _one_by_one(
        self, groundwork: Groundwork, parts: Sequence[str], begin: float
    ) -> Iterator[Found | OnewayError]:
        """Run all parts here; leave seeds out for which there is no time."""
        done = 0
        for part in parts:
            is_seed = part.startswith(SEED_PART)
            if is_seed and done and self._is_late(begin, done):
                return
            try:
                yield self.parts.run(part, groundwork)
            except OnewayError as error:
                yield error
            done += is_seed

    def _full_plan(self, answers: Answers) -> AuditPlan:
        """Return all that applies to the release, whatever it takes."""
        attacks, classes = ["label-only", "static", "retrained"], answers.clean.shape[-1]
        if answers.random:
            attacks.append("averaging")
        if is_copied(self.subject.release):
            attacks.append("adversarial-training")
        if can_follow(self.subject):
            attacks.append("optimising")
        settings = self.settings
        return AuditPlan(
            attacks=tuple(attacks),
            front_ends=settings.front_ends,
            widths=settings.widths,
            repeats=settings.repeats,
            most_epochs=settings.most_epochs,
            first_epochs=settings.first_epochs,
            controls=controls_for(attacks, classes) if settings.controls else (),
            seeds=settings.seeds,
            auxiliary=len(self.subject.auxiliary),
        )

    def _costs(self, answers: Answers, built: Built) -> Costs:
        """Measure what an epoch and a query cost on this machine."""
        images, confidences = self.subject.auxiliary[:64], answers.clean[:64]
        front_ends = dict.fromkeys(self.settings.front_ends)
        if self.settings.controls:
            front_ends |= dict.fromkeys(control.front_end for control in CONTROLS.values())
        training = {
            (front_end, width): self._step_seconds(confidences, images, front_end, width)
            for front_end, width in product(front_ends, self.settings.widths)
        }
        again = built.again("timing")
        allowed, taken = access(self.subject, again, undeclared=answers.undeclared), []
        for asked in (images, images[:1]):
            begin = time.perf_counter()
            allowed.query(asked, 1)
            synchronize(self.device)
            taken.append(time.perf_counter() - begin)
        return Costs(
            training,
            asking=taken[0] / len(images),
            single=taken[1],
            auxiliary=len(self.subject.auxiliary),
            test=len(self.subject.test),
        )

    def _step_seconds(
        self, confidences: Tensor, images: Tensor, front_end: str, width: int
    ) -> float:
        """Return what a decoder takes to learn from one row once."""
        classes, shape = confidences.shape[-1], images.shape[1:]

        def build() -> Inverter | RecordInverter:
            network = build_inverter(classes, shape, width=width, front_end=front_end)
            return network.to(self.device)

        network = Stream(self.seed, "timing").call(build, self.device)
        network.fit_front_end(confidences)
        optimizer = torch.optim.Adam(network.parameters())
        taken = list[float]()
        begin = time.perf_counter()
        while len(taken) < 3 or taken[-1] - taken[0] < TIMED_SECONDS:
            optimizer.zero_grad()
            (network(confidences) - images).square().mean().backward()
            optimizer.step()
            synchronize(self.device)
            taken.append(time.perf_counter() - begin)
        # The first step is slow: it prepares kernels.
        return (taken[-1] - taken[0]) / (len(taken) - 1) / len(images)

    def _is_late(self, begin: float, rounds: int) -> bool:
        """Say whether another seed would take longer than there is time."""
        if self.settings.minutes is None:
            return False
        spent = time.perf_counter() - begin
        return spent + spent / (rounds + 1) > 60 * self.settings.minutes

    def _find_epochs(
        self, plan: AuditPlan, answers: Answers, images: Tensor, begin: float
    ) -> tuple[int, bool]:
        """Double the epochs until twice as many gain nothing; say whether that was reached.

        On clean scores and on released ones alike: whoever is still learning decides for both,
        since all releases are attacked with equal means.
        """
        epochs, front_end, width = plan.first_epochs, plan.front_ends[0], max(plan.widths)
        while 2 * epochs <= plan.most_epochs:
            gains = []
            for told, confidences in (("clean", answers.clean), ("released", answers.released)):
                once, twice = (
                    self.parts.train_one(
                        confidences, images, front_end, width, count, f"pace: {told}, {count}"
                    )[1]
                    for count in (epochs, 2 * epochs)
                )
                gains.append(1 - twice / once)
            if max(gains) < GAIN:
                return epochs, True
            # Twice the epochs gained: so twice is what all decoders get.
            epochs *= 2
            spent = time.perf_counter() - begin
            limit = self.settings.minutes
            late = limit is not None and (3 * spent > 60 * limit or 2 * plan.seconds > 60 * limit)
            if late:
                break
        return epochs, False

    def _record(
        self,
        plan: AuditPlan,
        rounds: Sequence[Round],
        controls: Mapping[str, ControlResult],
        flags: Sequence[Flag],
        measures: Measures,
        useful: Mapping[str, Any],
        built: Built,
        answers: Answers,
    ) -> dict[str, Any]:
        subject = self.subject
        names = list(rounds[0].results)
        floors = {
            name: _mean([float(getattr(one.floors, name).mean()) for one in rounds])
            for name in ("clean", "label", "prior")
        }
        gaps = [one.verdict.closed_gap for one in rounds]
        tail = least_confident(answers.clean_test)
        interval = self._gap_interval(rounds, lambda one: one.strongest.errors)
        tail_interval = self._gap_interval(
            rounds, lambda one: errors_on(tail, one.results, one.verdict.strongest), tail
        )
        return {
            "release": subject.release.name,
            "defense": "guarded endpoint" if subject.guarded else subject.release.defense,
            "options": json_values(subject.release.options),
            "auxiliary": plan.auxiliary,
            "queries": len(subject.test),
            "classes": answers.clean.shape[-1],
            "shape": list(subject.test.shape[1:]),
            "plan": json_values(dataclasses.asdict(plan)),
            "seeds": [one.seed for one in rounds],
            "errors": {name: _mean([one.results[name].error for one in rounds]) for name in names},
            "candidates": {name: rounds[0].results[name].candidate for name in names},
            "strongest": [one.verdict.strongest for one in rounds],
            "floors": floors,
            "adaptive_error": _mean([one.verdict.adaptive_error for one in rounds]),
            # Of the errors that all seeds have in the mean: a mean of ratios follows the seed whose
            # clean and label-only errors differ least.
            "closed_gap": interval and interval["estimate"],
            "closed_gap_by_seed": gaps,
            "closed_gap_interval": interval,
            "closed_gap_tail": tail_interval and tail_interval["estimate"],
            "closed_gap_tail_interval": tail_interval,
            "tail_queries": len(tail),
            "flips": answers.flips,
            "keeps_label": subject.guarded is None and built.defense.keeps_label,
            "random": answers.random,
            "controls": {
                name: {
                    **dataclasses.asdict(result),
                    "attack": CONTROLS[name].attack,
                    "front_end": CONTROLS[name].front_end,
                }
                for name, result in controls.items()
            },
            "void": bool(failed_controls(controls)),
            "flags": [dataclasses.asdict(flag) for flag in flags],
            "privacy": measures.summary,
            "reidentified": measures.reidentified,
            "utility": dict(useful),
            "defender_training_seconds": built.seconds,
            "environment": environment(self.device),
        }

    def _gap_interval(
        self, rounds: Sequence[Round], errors: Callable[[Round], Tensor], rows: Tensor | None = None
    ) -> dict[str, Any] | None:
        """Return the bootstrap interval of G over queries, of errors averaged over seeds.

        Args:
            rounds: One for each seed.
            errors: Those of a round's attacker.
            rows: Of which queries they are; None: all.
        """
        index = slice(None) if rows is None else rows
        adaptive = torch.stack([errors(one) for one in rounds]).mean(0)
        clean = torch.stack([one.floors.clean[index] for one in rounds]).mean(0)
        label = torch.stack([one.floors.label[index] for one in rounds]).mean(0)
        if float(clean.mean()) >= float(label.mean()):
            return None
        generator = Stream(self.seed, "bootstrap").generator()
        interval: Interval = bootstrap_gap(adaptive, clean, label, generator=generator)
        found: dict[str, Any] = json_values(dataclasses.asdict(interval))
        return found


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if len(told) == len(values) else None
