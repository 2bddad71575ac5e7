"""Typed records of the attacks on a release, with their forms in files."""

import base64
import dataclasses
import math
import os
import platform
import shutil
import subprocess
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import oneway
from oneway.attacks import ATTACKS, LabelOnly
from oneway.attacks.base import Attack
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.attacks.stealing import STEALING_ATTACKS
from oneway.errors import CorruptDataError, OnewayError
from oneway.evaluation.convergence import Convergence, not_trained_out
from oneway.evaluation.flags import Flag
from oneway.evaluation.grading import AttackResult, Baselines
from oneway.evaluation.matching import MatchingResult
from oneway.evaluation.store import fingerprint, read_json_lines, write_json_lines
from oneway.evaluation.verdict import beats_label, judge, no_limit, trained_attacks
from oneway.metrics import distortion
from oneway.parsing import build_from
from oneway.targets import Trace

REGISTERED: Mapping[str, Attack] = ChainMap[str, Any](STEALING_ATTACKS, MEMBERSHIP_ATTACKS, ATTACKS)
"""Attacks of all threats, also of those registered later; no two have the same name."""

SCHEMA = 2
"""Version of the records' form. Raise it when a field changes its name or meaning."""


def numerics_of(attackers: Iterable[str]) -> dict[str, int]:
    """Return today's ``numerics`` of the registered ones among attackers, by name."""
    taking_part = set(attackers)
    return {name: attack.numerics for name, attack in REGISTERED.items() if name in taking_part}


def outdated(numerics: Mapping[str, int], attackers: Iterable[str]) -> tuple[str, ...]:
    """Return the attackers whose results would differ today, or are missing.

    Args:
        numerics: The attackers' versions in a record, by name. Empty in a record that was made
            before attackers had versions.
        attackers: Names of the attackers that took part, or should take part today.
    """
    names = dict.fromkeys((*numerics, *attackers))
    today = numerics_of(names)
    return tuple(name for name in names if name not in today or numerics.get(name) != today[name])


@dataclass(frozen=True)
class Environment:
    """Software and hardware that computed a record.

    Attributes:
        oneway: Version of oneway.
        torch: Version of PyTorch.
        python: Version of Python.
        system: Operating system and architecture.
        processor: Name of the processor.
        device: ``"cpu"``, or the name of the GPU.
        cores: Processor cores of the machine.
        threads: Threads that PyTorch used.
    """

    oneway: str
    torch: str
    python: str
    system: str
    processor: str
    device: str
    cores: int | None
    threads: int


def environment(device: torch.device) -> Environment:
    """Return this process's environment, with networks on ``device``."""
    return Environment(
        oneway=oneway.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
    )


def origin(attackers: Iterable[str] = (), device: torch.device | None = None) -> dict[str, Any]:
    """Return what a benchmark's record says of the code and the machine that made it.

    Args:
        attackers: Names of the attackers that took part, of any threat.
        device: Where networks ran; None: on the CPU.

    Returns:
        ``environment`` and ``commit``; with attackers, their versions as ``numerics``.
    """
    made = {
        "environment": dataclasses.asdict(environment(device or torch.device("cpu"))),
        "commit": source_commit(),
    }
    versions = numerics_of(attackers)
    return made | ({"numerics": versions} if versions else {})


@dataclass(frozen=True)
class Provenance:
    """The code, date, data and model behind a record.

    Attributes:
        commit: Git revision of the source, with ``-dirty`` if files differed from it; None for an
            installed package.
        date: Date and time of the record, in UTC (ISO 8601).
        data: SHA-256 of all images and labels that were used.
        model: SHA-256 of the model's file or weights; None where neither is at hand.
    """

    commit: str | None
    date: str
    data: str
    model: str | None

    @classmethod
    def now(cls, data: str, model: str | None) -> Self:
        """Return the provenance of a record that this code makes now.

        Args:
            data: SHA-256 of all images and labels.
            model: SHA-256 of the model's file or weights; None where neither is at hand.
        """
        moment = datetime.now(UTC).replace(microsecond=0)
        return cls(source_commit(), moment.isoformat(), data, model)


@dataclass(frozen=True)
class BaselineErrors:
    """Mean squared errors per pixel of the baselines.

    Attributes:
        clean: Error of the best attack on clean scores.
        label: Error of the best attack on the predicted label alone.
        prior: Error of the mean image.
    """

    clean: float
    label: float
    prior: float

    @classmethod
    def of(cls, baselines: Baselines) -> Self:
        """Return the means over all queries."""
        return cls(
            *(float(getattr(baselines, name).mean()) for name in ("clean", "label", "prior"))
        )


@dataclass(frozen=True, kw_only=True)
class TypedRecord:
    """Base class of records, with the version of their form, to write and to read them.

    Attributes:
        subject: Subject of the record, for messages, such as ``"an audit"``.
        schema: Version of this form.
    """

    subject: ClassVar[str]
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, ``schema`` first."""
        values: dict[str, Any] = json_values(dataclasses.asdict(self))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return the record of JSON values that :meth:`to_json` returned.

        Raises:
            CorruptDataError: The object is no record of this class, or has another version's form.
        """
        if values.get("schema") != SCHEMA:
            raise CorruptDataError(
                f"{where} must be a record with schema {SCHEMA}, but has "
                f"{values.get('schema', 'none')!r}. Make it again with this version of oneway."
            )
        try:
            return build_from(cls, dict(values), "the record")
        except OnewayError as error:
            raise CorruptDataError(
                f"{where} must be a record of {cls.subject}: {error} Pass such a record. Make it "
                "again with this version of oneway if it is one."
            ) from error


@dataclass(frozen=True, kw_only=True)
class JudgedRelease(TypedRecord):
    """What attackers reach on a release: in an experiment with a seed, in an audit over all seeds.

    Attributes:
        auxiliary: Auxiliary rows that attackers had.
        queries: Test queries that attacks were graded on.
        label_changes: Number of queries with another released label than the model's.
        errors: Mean squared error per pixel of each attacker.
        reconstructors: Name of the reconstructor that each attacker chose, on the first seed.
        baselines: Errors of the baselines.
        adaptive_error: Error of the strongest attacker.
        closed_gap: G over all queries, of errors that are averaged over seeds; None if clean scores
            add nothing to the label. Where the attack failed, it is no measurement.
        closed_gap_least_confident: G over the least confident 5 % of queries.
        flags: Suspicious facts about the release or this evaluation.
        environment: Software and hardware.
        provenance: Code, date, data and model.
        convergence: Epochs of each attacker's decoders on the release, and whether twice as many
            gain nothing, on the seed that converged least; no entry for an attacker that trains no
            decoder; empty in older records.
        numerics: Version of each attacker that took part, on the release or on clean scores; empty
            in records that are older than versions.
        attack_failed: Whether no trained attacker beats the label, on some seed; None in older
            records, of which ``failed`` says what their errors say.
        detection_limit: Smallest known leak that the attackers find on every seed, as a share of
            the gap; None if they find none, if the attack did not fail, if there was no time for
            the search, and in older records.
        closed_gap_at_least: Bound of G where the attack failed, the lowest of all seeds; None if
            nothing can be claimed.
        matching: Shares of queries that ``matching`` identifies, by kind of gallery; empty in older
            records, and where no candidate could be asked about.
    """

    auxiliary: int
    queries: int
    label_changes: int
    errors: Mapping[str, float]
    reconstructors: Mapping[str, str]
    baselines: BaselineErrors
    adaptive_error: float
    closed_gap: float | None
    closed_gap_least_confident: float | None
    flags: tuple[Flag, ...]
    environment: Environment
    provenance: Provenance
    convergence: Mapping[str, Convergence] = field(default_factory=dict)
    numerics: Mapping[str, int] = field(default_factory=dict)
    attack_failed: bool | None = None
    detection_limit: float | None = None
    closed_gap_at_least: float | None = None
    matching: Mapping[str, MatchingResult] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackRecord(JudgedRelease):
    """The attacks on a release with one seed, with their verdict.

    Attributes:
        experiment: Name of the experiment, or ``"attack"``.
        seed: Seed of every random stream.
        reconstructor_errors: Mean error of each attacker's reconstructors.
        strongest: Name of the attacker with the lowest error.
        errors_per_query: Each attacker's errors, as ``packed`` writes them.
    """

    subject: ClassVar = "an experiment"

    experiment: str
    seed: int
    reconstructor_errors: Mapping[str, Mapping[str, float]]
    strongest: str
    errors_per_query: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Whether the attack failed; of an older record, whether its errors leave room for it."""
        if self.attack_failed is not None:
            return self.attack_failed
        errors = {
            name: torch.from_numpy(unpacked(text).copy())
            for name, text in self.errors_per_query.items()
        }
        trained = [name for name in trained_attacks(self.errors) if name in errors]
        if LabelOnly.name in errors and trained:
            label = errors[LabelOnly.name].double()
            return not any(beats_label(errors[name].double(), label) for name in trained)
        return not self.adaptive_error < self.baselines.label


@dataclass(frozen=True, kw_only=True)
class ReleaseRecord(AttackRecord):
    """A release of an experiment, with its defense, costs and leak.

    Attributes:
        preset: Preset of the experiment; empty: none.
        cell: Hash of all that decides the record except the data.
        release: Name of the release.
        defense: Registered name of the defense.
        options: Options that the experiment sets.
        effective_options: All options, at their defaults where they are not set.
        accuracy: Share of test queries with the true class as released label.
        keeps_label: Whether the defense promises to keep labels.
        random: Whether the same query is answered differently each time.
        logit_distortion: Mean absolute difference of logits per class, in nats; None where a
            probability of 0 was released.
        l1_mean: Mean L1 distance of probabilities, from 0 to 2.
        l1_p99: 99th percentile of the L1 distance.
        l1_max: Maximum of the L1 distance.
        training_seconds: Seconds that the defense trained.
        training: Facts that the training recorded.
        milliseconds_single_query: Median time of a query by itself.
        milliseconds_per_query_batched: Time of a query in a large batch.
        spec: Spec of the experiment.
    """

    preset: str
    cell: str
    release: str
    defense: str
    options: Mapping[str, Any]
    effective_options: Mapping[str, Any]
    accuracy: float
    keeps_label: bool
    random: bool
    logit_distortion: float | None
    l1_mean: float
    l1_p99: float
    l1_max: float
    training_seconds: float
    training: Mapping[str, Any]
    milliseconds_single_query: float
    milliseconds_per_query_batched: float
    spec: Mapping[str, Any]


Record = TypeVar("Record", bound=AttackRecord, covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[Record]):
    """The record and the results of the attacks on a release.

    Attributes:
        record: The record.
        results: Result of each attacker, by name.
        released: ``(N, K)`` released confidences of the test queries.
    """

    record: Record
    results: Mapping[str, AttackResult]
    released: Tensor


def judged(
    results: Mapping[str, AttackResult],
    baselines: Baselines,
    clean: Tensor,
    label_changes: int,
    find_limit: Callable[[], float | None] = no_limit,
) -> dict[str, Any]:
    """Judge the attacks on a release.

    Args:
        results: Result of each attacker, by name.
        baselines: Baselines of the same test queries.
        clean: ``(N, K)`` clean confidences of the test queries.
        label_changes: Number of queries with another released label than the model's.
        find_limit: Returns the detection limit of the attackers; see
            :func:`oneway.evaluation.judge`.

    Returns:
        The fields of :class:`AttackRecord` that follow from the arguments.
    """
    verdict = judge(results, baselines, clean, label_changes, find_limit)
    convergence = {
        name: result.convergence
        for name, result in results.items()
        if result.convergence is not None
    }
    return {
        "label_changes": label_changes,
        "errors": {name: result.error for name, result in results.items()},
        "reconstructors": {name: result.reconstructor for name, result in results.items()},
        "reconstructor_errors": {
            name: dict(result.reconstructor_errors) for name, result in results.items()
        },
        "baselines": BaselineErrors.of(baselines),
        "adaptive_error": verdict.adaptive_error,
        "strongest": verdict.strongest,
        "closed_gap": verdict.closed_gap,
        "closed_gap_least_confident": verdict.closed_gap_least_confident,
        "flags": (*verdict.flags, *not_trained_out(convergence)),
        "convergence": convergence,
        "attack_failed": verdict.attack_failed,
        "detection_limit": verdict.detection_limit,
        "closed_gap_at_least": verdict.closed_gap_at_least,
        "environment": environment(clean.device),
        "errors_per_query": {name: packed(result.errors) for name, result in results.items()},
        "numerics": numerics_of((*baselines.attackers, *results)),
    }


def distortion_of(trace: Trace, clean: Tensor) -> dict[str, float | None]:
    """Return the distances of a release from the clean scores, by field of a record.

    A released zero is infinitely far from its clean logit, so that logits have no distortion then.

    Args:
        trace: Scores of the test queries, from clean logits to the release.
        clean: ``(N, K)`` confidences without a defense.
    """
    moved = distortion(trace.clean_logits, trace.defended_logits, clean, trace.released)
    return {
        "logit_distortion": None if (trace.released == 0).any() else moved.logits,
        "l1_mean": moved.l1_mean,
        "l1_p99": moved.l1_p99,
        "l1_max": moved.l1_max,
    }


def write_records(path: Path, records: Sequence[AttackRecord]) -> None:
    """Write records as JSON Lines, whole or not at all."""
    write_json_lines(path, [record.to_json() for record in records])


def read_records(path: Path) -> list[ReleaseRecord]:
    """Read records of experiments, from JSON Lines.

    Args:
        path: The file. If it does not exist, there are no records.

    Raises:
        CorruptDataError: A line is not a record of this version's form.
    """
    return [
        ReleaseRecord.from_json(values, f"line {number} of {path}")
        for number, values in enumerate(read_json_lines(path), start=1)
    ]


def packed(errors: Tensor) -> str:
    """Return ``(N)`` numbers as text: base64 of little-endian float16, 2.7 characters each."""
    halves = errors.cpu().numpy().astype("<f2")
    return base64.b64encode(halves.tobytes()).decode("ascii")


def unpacked(text: str) -> NDArray[np.float16]:
    """Return ``(N)`` numbers that ``packed`` wrote, to about 3 significant digits."""
    return np.frombuffer(base64.b64decode(text), "<f2")


def json_values(value: Any) -> Any:
    """Return options as JSON values; infinity becomes text, since JSON lacks it."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and buffers, in the order of their names."""
    return fingerprint(*(tensor for _, tensor in sorted(module.state_dict().items())))


@cache
def source_commit() -> str | None:
    """Return the Git revision of this source, with ``-dirty`` if files differ from it.

    Returns:
        None for an installed package, or without git.
    """
    git = shutil.which("git")
    folder = Path(__file__).parent
    # A checkout of oneway, and not another repository with an installed oneway in it.
    if git is None or not (folder.parents[2] / ".git").exists():
        return None
    words = [
        git,
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() or None


def _processor() -> str:
    """Return the processor's name, or what the system knows of it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
