"""Experiments as tables: one row per release, on average over seeds; and what they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from oneway.benchmark import Estimate, Published, Summary, bundled_spec
from oneway.benchmark.entries import ENTRY
from oneway.errors import UnknownNameError
from oneway.evaluation import Flag, ReleaseRecord
from oneway.report.sentences import (
    FAILED,
    MARK,
    NOT_TRAINED_OUT,
    attackers_fact,
    bound_text,
    environment_facts,
    gap_number,
    seeds_text,
    trained_out,
)
from oneway.report.table import Column, Listing

LEADERBOARD = "leaderboard"


def gap_spread(estimate: Estimate | None) -> str:
    """Return a measured G with its 95 % interval, never rounded up to 1; or a dash."""
    if estimate is None:
        return "-"
    digits = len(gap_number(estimate.mean).partition(".")[2])
    return spread(estimate, digits)


def spread(estimate: Estimate | None, digits: int, scale: float = 1) -> str:
    """Return a mean with its 95 % interval, or a dash where there is none."""
    if estimate is None:
        return "-"
    text = f"{scale * estimate.mean:.{digits}f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {scale * estimate.half_width:.{digits}f}"


def _column(name: str, digits: int, scale: float = 1, meaning: str = "") -> Column:
    """Return the column of one of a summary's values."""
    return Column(
        lambda summary: summary.values.get(name),
        lambda estimate: spread(estimate, digits, scale),
        meaning,
    )


def _adaptive(summary: Summary) -> Estimate | None:
    """Return the error of the attacker who knows the algorithm, or repeats its queries."""
    values = summary.values
    return values.get("error adversarial-training") or values.get("error averaging")


def _gap_of_bound(summary: Summary) -> float | None:
    """Return G of the lower bound; None without a bound or without a gap."""
    names = ("certified_error_lower_bound", "baseline clean", "baseline label")
    if not all(name in summary.values for name in names):
        return None
    bound, clean, label = (summary.values[name].mean for name in names)
    return None if clean >= label else (bound - clean) / (label - clean)


def gap_text(summary: Summary, name: str = "closed_gap") -> str:
    """Return a closed gap with its interval, or what may be claimed where the attack failed.

    Args:
        summary: A release.
        name: Name of the gap among the values of summaries.
    """
    if name in summary.failed:
        return bound_text(summary.bound if name == "closed_gap" else None)
    return gap_spread(summary.values.get(name))


def gap_words(summary: Summary) -> str:
    """Return what is claimed of G over all queries, for a sentence: ``G = 0.25 ± 0.02``."""
    if "closed_gap" not in summary.failed:
        return f"G = {gap_text(summary)}"
    return FAILED if summary.bound is None else f"G {gap_text(summary)}"


RELEASE = Column(attrgetter("release"))

MARKED_RELEASE = Column(lambda summary: summary.release + f" {MARK}" * bool(summary.outdated))

COLUMNS = {
    "release": MARKED_RELEASE,
    "accuracy, %": _column("accuracy", 2, 100),
    "label changes": _column("label_changes", 0),
    "logit distortion": _column("logit_distortion", 2),
    "L1 of probabilities": _column("l1_mean", 4),
    "static error": _column("error static", 4, 1, "the attacker trained on clean scores."),
    "retrained error": _column("error retrained", 4, 1, "the attacker trained on the release."),
    "adaptive error": Column(
        _adaptive,
        lambda estimate: spread(estimate, 4),
        "the attacker knows the algorithm and its parameters (adversarial-training), or averages "
        "many answers to each query, for random releases.",
    ),
    "closed gap G": Column(
        lambda summary: gap_text(summary),
        help="0 = the release hides nothing, 1 = it reveals no more than the label, below 0 = it "
        "reveals more than clean scores did; of the strongest attacker of each seed. Failed: on "
        "some seed no trained attacker did better than the label alone, so that G is not measured; "
        "≥ is what it may be against these attackers, who find known leaks down to a limit.",
    ),
    "G, least confident 5 %": Column(
        lambda summary: gap_text(summary, "closed_gap_least_confident")
    ),
    "trained out": Column(
        lambda summary: trained_out(summary.convergence),
        str,
        "twice the epochs of each attacker's decoders lower the error on held-out rows by less "
        "than 1 % of the gap between the label and clean scores; else the largest gain.",
    ),
    "identified, %": _column(
        *("matching true inputs", 1, 100),
        "the share of queries that an attacker names who asks about each candidate of a gallery "
        "that holds the query (matching); of candidates that tie, one is named at random.",
    ),
}
"""Columns of a summary. Errors are mean squared errors per pixel."""

OPTIONAL = ("adaptive error", "identified, %")
"""Columns that are left out where they are empty: not every experiment has such attackers."""

COSTS = {
    "release": RELEASE,
    "training, s": _column("training_seconds", 0, 1, "of the defense, without the target."),
    "surrogate's error": _column("surrogate_held_out_error", 4),
    "one query, ms": _column("milliseconds_single_query", 1),
    "each of 256, ms": _column(
        *("milliseconds_per_query_batched", 2, 1),
        "milliseconds depend on what else the machine was doing: compare them with those of no "
        "defense.",
    ),
}

CERTIFICATES = {
    "release": MARKED_RELEASE,
    "bits beyond the label, at most": _column("bits_most", 2),
    "bits, measured": _column("bits_measured", 2),
    "certified error": _column(
        *("certified_error", 4, 1),
        "the least error of any attacker, estimated on calibration queries that fitted nothing. "
        "Attackers were graded on other queries, so that either error may be a little lower.",
    ),
    "lower bound": _column(
        *("certified_error_lower_bound", 4, 1),
        "distribution-free lower bound on that error (95 %, for each seed).",
    ),
    "strongest attacker's error": _column("adaptive_error", 4),
    "label alone": _column("baseline label", 4),
    "clean scores": _column("baseline clean", 4),
    "G of the bound": Column(
        _gap_of_bound,
        lambda gap: f"{gap:.2f}" if gap > 0 else "none",
        "(lower bound - clean scores) / (label alone - clean scores), of means over seeds; none: "
        "0 or less, so that the bound does not exclude that the release reveals as much as clean "
        "scores do. It is no 95 % statement, since the other two errors have sampling errors, too.",
    ),
    "members, at least": _column("members_least", 0),
}


def summary_table(summaries: Sequence[Summary], title: str | None = None) -> Listing:
    """Return one row per release; without columns of attackers that no release was attacked by.

    Args:
        summaries: Summaries of an experiment.
        title: The caption; None: it says which errors to compare those of the table with.
    """
    if title is None:
        label, clean = (
            spread(summaries[0].values.get(f"baseline {name}"), 4) for name in ("label", "clean")
        )
        title = (
            "Means, with 95 % intervals over seeds. To compare errors with: from the label alone "
            f"{label}, from clean scores {clean}"
        )
    shown = {
        heading: column
        for heading, column in COLUMNS.items()
        if heading not in OPTIONAL or any(map(column.value, summaries))
    }
    return Listing(title, shown, summaries, _footnotes(summaries))


def costs_table(summaries: Sequence[Summary]) -> Listing:
    """Return what each release takes to train and to answer."""
    return Listing("Training and answers", COSTS, summaries)


def certificates_table(summaries: Sequence[Summary]) -> Listing:
    """Return what releases with a certificate certify; no rows where none has a certificate."""
    certified = [summary for summary in summaries if "certified_error" in summary.values]
    title = "Certified errors, beside what attackers reached"
    return Listing(title, CERTIFICATES, certified, _footnotes(certified))


def todays(summaries: Sequence[Summary]) -> Sequence[Summary]:
    """Return the releases that today's attackers measured, which alone are compared; or all.

    All, if today's attackers measured none: a notice then says so.
    """
    return [summary for summary in summaries if not summary.outdated] or summaries


def _footnotes(summaries: Sequence[Summary]) -> list[str]:
    return [NOT_TRAINED_OUT] if any(summary.outdated for summary in summaries) else []


def published_table(theirs: Published, summaries: Sequence[Summary]) -> Listing:
    """Return what the paper printed; errors also as multiples of no defense, beside ours."""
    ours = {summary.release: summary for summary in summaries}
    base = next((row.error for row in theirs.rows if row.release == "none"), None)

    def multiple(name: str) -> Column:
        """Return our error as a multiple of the best attack's error on clean scores."""

        def value(row: Any) -> float | None:
            values = ours[row.release].values if row.release in ours else {}
            return values[name].mean / values["baseline clean"].mean if name in values else None

        return Column(value, ".1f")

    columns = {
        "printed as": Column(attrgetter("printed")),
        "accuracy, %": Column(lambda row: 100 * row.accuracy if row.accuracy >= 0 else None, ".2f"),
        "distortion": Column(attrgetter("logit_distortion"), ".4g"),
        "error": Column(attrgetter("error"), ".4f"),
        "times no defense": Column(lambda row: row.error / base if base else None, ".1f"),
        "measured: static, times clean": multiple("error static"),
        "measured: strongest, times clean": multiple("adaptive_error"),
    }
    return Listing(f"{theirs.table}: theirs, as printed", columns, theirs.rows)


def by_experiment(records: Sequence[ReleaseRecord]) -> dict[tuple[str, str], list[ReleaseRecord]]:
    """Return records by their experiment and preset, in the order of first appearance."""
    groups: dict[tuple[str, str], list[ReleaseRecord]] = {}
    for record in records:
        groups.setdefault((record.experiment, record.preset), []).append(record)
    return groups


def experiment_name(experiment: str, preset: str) -> str:
    """Return the title of an experiment with a preset, which may be empty."""
    name = f"{experiment}, {preset}" if preset else experiment
    return f"{name[0].upper()}{name[1:]}"


@dataclass(frozen=True)
class RaisedFlag:
    """A flag of an experiment.

    Attributes:
        name: The flag's name.
        detail: Finding that raised the flag, without counts.
        releases: The releases of which it was raised, with the number of seeds.
    """

    name: str
    detail: str
    releases: Sequence[str]

    def text(self) -> str:
        """Return what raised it, and for which releases."""
        return f"{self.detail}: {'; '.join(self.releases)}"


def raised_flags(summaries: Sequence[Summary]) -> list[RaisedFlag]:
    """Return every flag that a seed of a release raised, each detail once."""
    raised: dict[Flag, list[str]] = {}
    for summary in summaries:
        for flag, count in summary.flags.items():
            release = f"{summary.release} ({count} of {seeds_text([len(summary.seeds)])})"
            raised.setdefault(flag, []).append(release)
    return [RaisedFlag(flag.name, flag.detail, releases) for flag, releases in raised.items()]


def split_sizes(data: Mapping[str, Any]) -> str:
    """Return the sizes of an experiment's splits in words.

    Args:
        data: The ``data`` of a record's spec: numbers of images, or shares of those that are there.
    """
    private, auxiliary, test = (
        f"{data[name]:.0%} of" if isinstance(data[name], float) else f"{data[name]:,}"
        for name in ("private", "auxiliary", "test")
    )
    return f"{private} private, {auxiliary} auxiliary images, {test} queries"


def how_facts(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """Return how an experiment was measured: command, data, attackers, seeds, machines."""
    first = summaries[0].record
    data, attackers = first.spec["data"], first.spec["attackers"]
    names = list({name: None for summary in summaries for name in summary.record.errors})
    facts = [
        ("Command", command_of(first.experiment, first.preset)),
        (
            "Data",
            split_sizes(data)
            + (f", scaled to {data['side']} x {data['side']}" if data.get("side") else ""),
        ),
        attackers_fact(names),
    ]
    for title, key in (("Input transforms", "input_transforms"), ("Decoder widths", "widths")):
        if attackers.get(key):
            facts.append((title, ", ".join(map(str, attackers[key]))))
    if attackers.get("training"):
        lengths = [each.epochs for summary in summaries for each in summary.convergence.values()]
        most = max(lengths, default=attackers["training"]["epochs"])
        facts.append(("Epochs", f"at most {most}"))
    facts.append(("Seeds", seeds_of(summaries)))
    facts += _made(summaries)
    machines = (fact for summary in summaries for fact in _machines(summary))
    return [*facts, *dict.fromkeys(machines)]


def _made(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """Return when and by which code records were made, and hashes of their data and models."""
    made = [each for summary in summaries for each in summary.provenances]
    days = sorted({each.date.partition("T")[0] for each in made})
    named = {
        "Commits": sorted({each.commit or "an installed package" for each in made}),
        "Data, SHA-256": sorted({each.data for each in made}),
        "Models, SHA-256": sorted({each.model or "not at hand" for each in made}),
    }
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [("Made", span), *((name, ", ".join(each)) for name, each in named.items())]


def _machines(summary: Summary) -> list[tuple[str, str]]:
    return [fact for machine in summary.environments for fact in environment_facts(machine)]


def command_of(experiment: str, preset: str) -> str:
    """Return the command that makes these records; of an unknown experiment, with its file."""
    if experiment == LEADERBOARD:
        return f"oneway leaderboard --data {preset}"
    if experiment.startswith(ENTRY):
        return f"oneway leaderboard --data {preset} --entry {experiment.removeprefix(ENTRY)}.toml"
    table, _, kind = experiment.partition("-")
    if table == "demo":
        return f"oneway demo --data {kind}"
    try:
        bundled_spec(experiment)
        what = f"{table} --data {kind}"
    except UnknownNameError:
        what = f"{experiment}.toml"
    return f"oneway reproduce {what}" + (f" --preset {preset}" if preset else "")


def seeds_of(summaries: Sequence[Summary]) -> str:
    """Return the seeds; by release, where releases differ in them."""
    releases: dict[tuple[int, ...], list[str]] = {}
    for summary in summaries:
        releases.setdefault(summary.seeds, []).append(summary.release)
    lists = {seeds: ", ".join(map(str, seeds)) for seeds in releases}
    if len(releases) == 1:
        return next(iter(lists.values()))
    return "; ".join(f"{lists[seeds]} ({', '.join(names)})" for seeds, names in releases.items())
