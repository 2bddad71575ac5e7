"""Rows over several seeds: for a terminal, for a page, and in words."""

from collections.abc import Callable, Sequence
from operator import itemgetter

from oneway.benchmark import Estimate, Published, Summary
from oneway.report.table import LABEL_LEAKS, Listing

SUMMARY_WIDTH = 176
"""Columns that :func:`summary_table` needs."""


def spread(estimate: Estimate | None, digits: int, scale: float = 1) -> str:
    """Return a mean with its 95 % interval, or a dash where there is none."""
    if estimate is None:
        return "-"
    text = f"{scale * estimate.mean:.{digits}f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {scale * estimate.half_width:.{digits}f}"


def _value(name: str, digits: int, scale: float = 1) -> Callable[[Summary], str]:
    return lambda summary: spread(summary.values.get(name), digits, scale)


def _adaptive(summary: Summary) -> str:
    """Return the error of the attacker who knows the algorithm, or repeats its queries."""
    for name in ("adversarial-training", "averaging"):
        if f"error {name}" in summary.values:
            return spread(summary.values[f"error {name}"], 4)
    return "-"


COLUMNS: dict[str, Callable[[Summary], str]] = {
    "release": lambda summary: summary.release,
    "accuracy, %": _value("accuracy", 2, 100),
    "label_changes": _value("label_changes", 0),
    "logit distortion": _value("logit_distortion", 2),
    "L1 of probabilities": _value("l1_mean", 4),
    "static error": _value("error static", 4),
    "retrained error": _value("error retrained", 4),
    "adaptive error": _adaptive,
    "closed gap G": _value("closed_gap", 2),
    "G, least confident 5 %": _value("closed_gap_least_confident", 2),
}

COSTS: dict[str, Callable[[Summary], str]] = {
    "release": lambda summary: summary.release,
    "training, s": _value("training_seconds", 0),
    "surrogate's error": _value("surrogate_held_out_error", 4),
    "one query, ms": _value("milliseconds_single_query", 1),
    "each of 256, ms": _value("milliseconds_per_query_batched", 2),
}


CERTIFICATES: dict[str, Callable[[Summary], str]] = {
    "release": lambda summary: summary.release,
    "bits beyond the label, at most": _value("bits_most", 2),
    "bits, measured": _value("bits_measured", 2),
    "certified error": _value("certified_error", 4),
    "strongest attacker's error": _value("adaptive_error", 4),
    "members, at least": _value("members_least", 0),
}


def summary_table(summaries: Sequence[Summary], title: str) -> Listing:
    """Return one row per release, means with 95 % intervals over seeds."""
    return Listing(title, COLUMNS, summaries)


def costs_table(summaries: Sequence[Summary]) -> Listing:
    """Return what each release takes to train and to answer."""
    return Listing("Training and answers", COSTS, summaries)


def certificates_table(summaries: Sequence[Summary]) -> Listing:
    """Return what releases with a certificate certify; no rows where none has one."""
    certified = [summary for summary in summaries if "certified_error" in summary.values]
    return Listing("Certified errors, beside what attackers reached", CERTIFICATES, certified)


PUBLISHED_COLUMNS: dict[str, Callable[[Sequence[str]], str]] = {
    column: itemgetter(place)
    for place, column in enumerate(
        (
            "printed as",
            "accuracy, %",
            "distortion",
            "error",
            "times no defense",
            "measured: static, times clean",
            "measured: strongest, times clean",
        )
    )
}


def published_table(theirs: Published, summaries: Sequence[Summary]) -> Listing:
    """Return what the paper printed, with the ratio to no defense beside ours."""
    title = f"{theirs.table}: theirs, as printed"
    return Listing(title, PUBLISHED_COLUMNS, published_rows(theirs, summaries))


def published_rows(theirs: Published, summaries: Sequence[Summary]) -> list[list[str]]:
    """Return the printed rows; errors also as multiples of no defense's, and ours likewise."""
    ours = {summary.release: summary for summary in summaries}
    base = next((row.error for row in theirs.rows if row.release == "none"), None)
    rows = []
    for row in theirs.rows:
        summary = ours.get(row.release)
        rows.append(
            [
                row.printed,
                f"{100 * row.accuracy:.2f}" if row.accuracy >= 0 else "-",
                f"{row.logit_distortion:.4g}",
                f"{row.error:.4f}",
                f"{row.error / base:.1f}" if base else "-",
                _multiple(summary, "error static"),
                _multiple(summary, "adaptive_error"),
            ]
        )
    return rows


def _multiple(summary: Summary | None, name: str) -> str:
    """Return an error of ours as a multiple of the best attack's on clean scores."""
    if summary is None or name not in summary.values:
        return "-"
    return f"{summary.values[name].mean / summary.values['baseline clean'].mean:.1f}"


def summary_remarks(summaries: Sequence[Summary]) -> list[str]:
    """Say in words what the rows mean, and what is suspicious about them."""
    first = summaries[0]
    seeds = min(len(summary.seeds) for summary in summaries)
    baselines = {
        name: spread(first.values.get(f"baseline {name}"), 4)
        for name in ("clean", "label", "prior")
    }
    lines = [
        "Baselines (mean squared error per pixel): best attack on clean scores "
        f"{baselines['clean']}, given the label alone {baselines['label']}, mean image "
        f"{baselines['prior']}.",
        "G: 0 = the release hides nothing, 1 = it tells no more than the label, below 0 = it "
        "tells more than clean scores did; taken from the strongest attacker of each seed.",
        f"{seeds} seed{'s' if seeds > 1 else ''} of splits, target, defense and attackers"
        + ("; means with 95 % intervals." if seeds > 1 else ": a smoke run, not to be published."),
    ]
    raised: dict[str, list[str]] = {}
    for summary in summaries:
        for flag, count in summary.flags.items():
            told = f"{summary.release} ({count} of {len(summary.seeds)} seeds)"
            raised.setdefault(flag, []).append(told)
    lines += [f"Flag: {flag}. Raised by {'; '.join(who)}." for flag, who in raised.items()]
    lines.append(
        f"{LABEL_LEAKS} Decoders were trained on up to {first.record['auxiliary']} queried "
        "images; a stronger one may exist."
    )
    return lines
