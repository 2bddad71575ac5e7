"""Stale records: an attacker of today is missing in them, or has another version than then."""

from functools import cache

from oneway.benchmark.spec import ExperimentSpec, bundled_spec
from oneway.errors import UnknownNameError
from oneway.evaluation.numerics import outdated
from oneway.evaluation.records import ReleaseRecord


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
