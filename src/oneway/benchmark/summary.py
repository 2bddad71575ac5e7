"""Summaries over seeds: means with 95 % intervals, of records that differ in the seed alone."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from oneway.benchmark.entries import RECORDED
from oneway.benchmark.spec import ExperimentSpec, bundled_spec, without_later_fields
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation.convergence import Convergence, least_by_name
from oneway.evaluation.flags import FLAGS, Flag
from oneway.evaluation.matching import NOISY_COPIES, TRUE_INPUTS
from oneway.evaluation.records import Environment, Provenance, ReleaseRecord, outdated
from oneway.evaluation.store import spec_key
from oneway.extras import load_extra


def outdated_attackers(
    record: ReleaseRecord, spec: ExperimentSpec | None = None
) -> tuple[str, ...]:
    """Return the attackers that make a record stale; none for a record of today's attackers.

    They are the attackers that took part with another version than today's, or with none; and the
    attackers of today's experiment that apply to the release or to clean scores and took no part.

    Args:
        record: The record.
        spec: The experiment today; None: the experiment of the record's name and preset that ships
            with oneway. Without one, attackers that took no part are unknown.
    """
    today = spec or _shipped(record.experiment, record.preset)
    expected = [*record.errors]
    if today is not None:
        rows = [row for row in today.releases if row.name == record.release]
        for row in (today.releases[0], *rows):
            expected += today.applying_attackers(row)
    return outdated(record.numerics, expected)


@cache
def _shipped(experiment: str, preset: str) -> ExperimentSpec | None:
    try:
        return bundled_spec(experiment, preset or None)
    except UnknownNameError:
        return None


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half_width: Half the width of the 95 % interval by Student's t; None for a single seed.
        count: Number of seeds.
    """

    mean: float
    half_width: float | None
    count: int


@dataclass(frozen=True)
class Summary:
    """A release over all seeds.

    Attributes:
        release: Name of the release.
        seeds: Seeds of the records, in order.
        values: Estimates by name: ``accuracy``, ``error static`` and so on. Values that a seed
            lacks are left out.
        label_changes: Number of changed labels of all seeds.
        flags: Every kind of flag that a seed raised, with the number of seeds that raised it.
        record: Record of the first seed, for values that all records share.
        failed: Closed gaps, by name of a value, that are not measured since the attack failed on
            some seed. They are left out of the values.
        bound: Bound of G over all queries where its attack failed: the mean over seeds, less half
            the width of the interval over seeds, at least 0. A seed whose attack did not fail
            counts with G. None if some seed has no bound, and where no attack failed.
        detection_limit: Largest detection limit of the seeds whose attack failed; None if any of
            them has none.
        environments: Environments of the records, each once.
        provenances: Code, date, data and model of the records, each once.
        convergence: Epochs of each attacker's decoders, and whether twice as many gain nothing, on
            the seed that converged least; empty if a seed does not record it.
        outdated: Attackers of today that are missing in a record, or that have another version
            today; empty for records of today's attackers.
    """

    release: str
    seeds: tuple[int, ...]
    values: Mapping[str, Estimate]
    label_changes: int
    flags: Mapping[Flag, int]
    record: ReleaseRecord
    environments: tuple[Environment, ...] = ()
    provenances: tuple[Provenance, ...] = ()
    convergence: Mapping[str, Convergence] = field(default_factory=dict)
    outdated: tuple[str, ...] = ()
    failed: frozenset[str] = frozenset()
    bound: float | None = None
    detection_limit: float | None = None

    def claimed(self, gap: str = "closed_gap") -> float | None:
        """Return a closed gap, or its bound where the attack failed; None if nothing is claimed.

        Args:
            gap: Name of the gap among the values.
        """
        if gap in self.failed:
            return self.bound if gap == "closed_gap" else None
        return self.values[gap].mean if gap in self.values else None


def _matched(record: ReleaseRecord, gallery: str) -> float | None:
    """Return the share of queries that matching identifies; None in older records."""
    result = record.matching.get(gallery)
    return None if result is None else result.rank_1


VALUES: dict[str, Callable[[ReleaseRecord], Any]] = {
    "accuracy": lambda record: record.accuracy,
    "label_changes": lambda record: record.label_changes,
    "logit_distortion": lambda record: record.logit_distortion,
    "l1_mean": lambda record: record.l1_mean,
    "l1_p99": lambda record: record.l1_p99,
    "l1_max": lambda record: record.l1_max,
    "adaptive_error": lambda record: record.adaptive_error,
    "closed_gap": lambda record: record.closed_gap,
    "closed_gap_least_confident": lambda record: record.closed_gap_least_confident,
    "baseline clean": lambda record: record.baselines.clean,
    "baseline label": lambda record: record.baselines.label,
    "baseline prior": lambda record: record.baselines.prior,
    "milliseconds_single_query": lambda record: record.milliseconds_single_query,
    "milliseconds_per_query_batched": lambda record: record.milliseconds_per_query_batched,
    "training_seconds": lambda record: record.training_seconds,
    "surrogate_held_out_error": lambda record: record.training.get("surrogate_held_out_error"),
    "matching true inputs": lambda record: _matched(record, TRUE_INPUTS),
    "matching noisy copies": lambda record: _matched(record, NOISY_COPIES),
    **{
        name: lambda record, name=name: record.training.get(name)  # type: ignore[misc]
        for name in (
            *("bits_most", "bits_measured", "members_least"),
            *("certified_error", "certified_error_lower_bound"),
        )
    },
}
"""Values that are averaged over seeds, by name; errors of attackers are added."""


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and 95 % interval of independent values.

    Args:
        values: Values to average, at least 1.

    Raises:
        InvalidOptionError: There are no values.
        MissingExtraError: scipy is not installed.
    """
    if not values:
        raise InvalidOptionError("a mean needs at least one value, but got none.")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    student = load_extra("scipy.stats", extra="demo", purpose="intervals over seeds").t
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(mean, quantile * spread / math.sqrt(count), count)


def summarise(records: Sequence[ReleaseRecord]) -> list[Summary]:
    """Average the seeds of each release; releases keep the order of the records.

    Stale records count only where a release has no others: then those of the settings with most
    seeds.

    Args:
        records: Records of an experiment and preset.

    Raises:
        InvalidOptionError: Records of a release differ in more than their seed, or a seed occurs
            twice.
    """
    by_release: dict[str, list[ReleaseRecord]] = {}
    for record in records:
        by_release.setdefault(record.release, []).append(record)
    return [_summary(release, group) for release, group in by_release.items()]


def _summary(release: str, group: Sequence[ReleaseRecord]) -> Summary:
    group = sorted(_counted(group), key=lambda record: record.seed)
    seeds = tuple(record.seed for record in group)
    if len(set(seeds)) < len(seeds):
        raise InvalidOptionError(
            f"release {release!r} must have distinct seeds, but has {list(seeds)}. Pass a single "
            "record of each seed."
        )
    specs = [_settings(record) for record in group]
    if any(spec != specs[0] for spec in specs):
        raise InvalidOptionError(
            f"records of release {release!r} must be of the same experiment, but their settings "
            "differ. Run all seeds again with the same settings."
        )
    columns: dict[str, list[Any]] = {
        name: [take(record) for record in group] for name, take in VALUES.items()
    }
    for attack in group[0].errors:
        columns[f"error {attack}"] = [record.errors.get(attack) for record in group]
    flags = Counter(_kind_of(flag) for record in group for flag in record.flags)
    failed = frozenset(name for name, fails in FAILS.items() if any(map(fails, group)))
    return Summary(
        release,
        seeds,
        {
            name: estimate(values)
            for name, values in columns.items()
            if name not in failed and all(value is not None for value in values)
        },
        sum(columns["label_changes"]),
        flags,
        group[0],
        tuple(dict.fromkeys(record.environment for record in group)),
        tuple(dict.fromkeys(record.provenance for record in group)),
        least_by_name(record.convergence for record in group)
        if all(record.convergence for record in group)
        else {},
        tuple(dict.fromkeys(name for record in group for name in outdated_attackers(record))),
        failed,
        _bound(group) if "closed_gap" in failed else None,
        _largest([record.detection_limit for record in group if _gap_fails(record)]),
    )


def _counted(group: Sequence[ReleaseRecord]) -> Sequence[ReleaseRecord]:
    """Return the records of today's attackers; without any, the stale ones of equal settings."""
    today = [record for record in group if not outdated_attackers(record)]
    if today:
        return today
    alike: dict[str, list[ReleaseRecord]] = {}
    for record in group:
        alike.setdefault(spec_key(_settings(record)), []).append(record)
    return max(alike.values(), key=len)


def _largest(limits: Sequence[float | None]) -> float | None:
    known = [limit for limit in limits if limit is not None]
    return max(known) if known and len(known) == len(limits) else None


def _gap_fails(record: ReleaseRecord) -> bool:
    return record.closed_gap is not None and (record.failed or record.closed_gap >= 1)


def _tail_fails(record: ReleaseRecord) -> bool:
    """Return whether no attacker beat the label over the least confident queries."""
    gap = record.closed_gap_least_confident
    return gap is not None and (record.failed or gap >= 1)


FAILS: dict[str, Callable[[ReleaseRecord], bool]] = {
    "closed_gap": _gap_fails,
    "closed_gap_least_confident": _tail_fails,
}
"""Closed gaps, with what says that the attack on a record failed."""


def _bound(group: Sequence[ReleaseRecord]) -> float | None:
    """Return the bound of G over seeds; None if nothing can be claimed."""
    claimed = [
        record.closed_gap_at_least if _gap_fails(record) else record.closed_gap for record in group
    ]
    known = [value for value in claimed if value is not None]
    if len(known) < len(claimed):
        return None
    over_seeds = estimate(known)
    return max(0.0, over_seeds.mean - (over_seeds.half_width or 0.0))


def _kind_of(flag: Flag) -> Flag:
    """Return a flag without details that differ between seeds, such as counts."""
    if flag.name == "not-trained-out":
        return flag  # its detail names the attackers
    statement = FLAGS[flag.name].statement
    detail = f"{flag.attack} {statement}" if flag.name == "attack-failed" else statement
    return Flag(flag.name, detail, flag.attack)


def _settings(record: ReleaseRecord) -> dict[str, Any]:
    """Return all settings that decide a record except its seed.

    Recorded scores are another file for each seed.
    """
    spec = without_later_fields(record.spec)
    attackers = spec["attackers"]
    names = attackers.pop("names")
    release = [row for row in spec["releases"] if row["name"] == record.release]
    rows = [
        {
            **row,
            "attackers": row["attackers"] or names,
            "options": None if row["defense"] == RECORDED else row["options"],
        }
        for row in (spec["releases"][0], *release)
    ]
    return {**spec, "seed": None, "attackers": attackers, "releases": rows}
