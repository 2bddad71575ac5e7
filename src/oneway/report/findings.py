"""The findings of an experiment, in sentences made from its numbers alone."""

import json
from collections.abc import Mapping, Sequence

from oneway.auditing import SEEDS
from oneway.benchmark import Estimate, Summary
from oneway.evaluation import ReleaseRecord
from oneway.report.audit import HIDDEN
from oneway.report.experiments import (
    gap_spread,
    gap_words,
    raised_flags,
    spread,
    summary_table,
    todays,
)
from oneway.report.frontier import gap_label
from oneway.report.sentences import (
    LABEL_LEAKS,
    NO_GAP,
    baselines_sentence,
    failure_sentence,
    flag_line,
    seeds_notice,
    seeds_text,
)

NOISE = "adversarial-noise"
"""The paper's defense: findings check the paper's claims about it."""

ALL_STALE = (
    "Not trained out: older attackers measured all of these releases. Today's attackers may read "
    "more, so that every G here may be lower."
)

MOST_RANKED = 5
"""Releases named by their rank; the table has all."""


def headline(summaries: Sequence[Summary]) -> str:
    """Return which release hides most, and which hides enough at the least change."""
    able = _defended(summaries)
    if not able:
        return f"{NO_GAP} Or no defense was run, or nothing can be claimed of any."
    best = strongest_release(summaries)
    enough = [release for release in able if _claimed(release) >= HIDDEN]
    sentence = f"Of {_count(able)}, “{best.release}” hides most: {_place(best)}"
    if enough:
        least = min(enough, key=lambda release: release.values["l1_mean"].mean)
        if least is not best:
            sentence += (
                f"; “{least.release}” changes least of those that close {HIDDEN:g} or more: "
                f"{_place(least)}"
            )
    else:
        sentence += f"; none closes {HIDDEN:g} of the gap"
    measured = [release for release in able if "closed_gap" in release.values]
    worse = [release for release in measured if _high(release.values["closed_gap"]) < 0]
    if worse:
        worst = min(worse, key=_claimed)
        sentence += (
            f". {len(worse)} of them reveal{'s' if len(worse) == 1 else ''} more than clean "
            f"scores, “{worst.release}” most: {gap_words(worst)}"
        )
    return f"{sentence}."


def report_lines(summaries: Sequence[Summary]) -> list[str]:
    """Return what a terminal says below the table of an experiment: the headline first."""
    notes, counted = summary_table(summaries).notes(), todays(summaries)
    return [headline(counted), *notices(summaries), *notes, *findings(counted)]


def overview(groups: Mapping[str, Sequence[Summary]]) -> str:
    """Return which release hides most in each of several experiments, each on a line."""
    parts = []
    for name, summaries in groups.items():
        if _defended(summaries):
            best = strongest_release(summaries)
            parts.append(f"{name}: “{best.release}” ({gap_words(best)})")
    return "\n".join(["What hides most, by experiment:", *parts]) if parts else NO_GAP


def strongest_release(summaries: Sequence[Summary]) -> Summary:
    """Return the defense that closes most of the gap, as far as may be claimed."""
    return max(_defended(summaries), key=_claimed)


def _claimed(summary: Summary) -> float:
    """Return G or its bound, of a release of which something can be claimed."""
    claimed = summary.claimed()
    assert claimed is not None, summary.release  # noqa: S101  callers leave the others out
    return claimed


def _defended(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the releases to choose from: neither no defense nor the label alone, with a claim.

    Those with too few seeds only if no release has enough.
    """
    able = [
        summary
        for summary in summaries
        if summary.record.defense not in ("none", "label-only")
        and summary.claimed() is not None
        and "l1_mean" in summary.values
    ]
    return [summary for summary in able if len(summary.seeds) >= SEEDS] or able


def _count(able: Sequence[Summary]) -> str:
    enough = min(len(summary.seeds) for summary in able) >= SEEDS
    of = f" with {SEEDS} seeds or more" if enough else ""
    return f"{len(able)} defense{'s' if len(able) > 1 else ''}{of}"


def _place(summary: Summary) -> str:
    moved = summary.values["l1_mean"]
    return f"{gap_words(summary)} of the gap at an L1 distance of {spread(moved, 4)}"


def seeds_notices(summaries: Sequence[Summary]) -> list[str]:
    """Return the warning about releases with too few seeds, if there are such."""
    few = [summary for summary in summaries if len(summary.seeds) < SEEDS]
    if not few:
        return []
    names = [summary.release for summary in few] if len(few) < len(summaries) else []
    return [seeds_notice(min(len(summary.seeds) for summary in few), names)]


def notices(summaries: Sequence[Summary]) -> list[str]:
    """Return the warnings about stale records and about too few seeds, if there are such."""
    counted = todays(summaries)
    lines = seeds_notices(counted)
    if counted[0].outdated:
        return [ALL_STALE, *lines]
    stale = [summary.release for summary in summaries if summary.outdated]
    if stale:
        lines.append(
            f"Sentences and charts leave out {len(stale)} releases that today's attackers have not "
            f"measured: {', '.join(stale)}."
        )
    return lines


def findings(summaries: Sequence[Summary]) -> list[str]:
    """Return what an experiment says about the paper's claims, its baselines and its flags."""
    noise = [summary for summary in summaries if summary.record.defense == NOISE]
    lines = [line for summary in noise for line in _claims(summary)] + _by_step(noise)
    ranked = sorted(
        (s for s in summaries if s.record.defense != "none" and s.claimed() is not None),
        key=lambda s: -_claimed(s),
    )
    if ranked:
        order = "; ".join(
            f"{s.release} {gap_label(s)} "
            f"({100 * s.values['accuracy'].mean:.1f} % accuracy, "
            f"L1 {s.values['l1_mean'].mean:.3f})"
            for s in ranked[:MOST_RANKED]
        )
        more = len(ranked) - MOST_RANKED
        lines.append(f"By closed gap: {order}{f'; and {more} more' if more > 0 else ''}.")
    first = summaries[0]
    lines.append(
        baselines_sentence(
            *(
                spread(first.values.get(f"baseline {name}"), 4)
                for name in ("clean", "label", "prior")
            )
        )
    )
    lines += [flag_line(flag.name, flag.text()) for flag in raised_flags(summaries)]
    return [*lines, _limit(first.record, [len(summary.seeds) for summary in summaries])]


def _limit(record: ReleaseRecord, seeds: Sequence[int]) -> str:
    return (
        f"{seeds_text(seeds)} of splits, target, defense and attackers. "
        f"Decoders were trained on up to {record.auxiliary} queried images; a stronger attacker "
        f"may exist. {LABEL_LEAKS}"
    )


def _claims(summary: Summary) -> list[str]:
    """Return what a release says about the paper's claims."""
    values, name = summary.values, f"“{summary.release}”"
    clean, label = values["baseline clean"].mean, values["baseline label"].mean
    lines = []
    static, gap = values.get("error static"), values.get("closed_gap")
    if static is not None:
        lines.append(
            f"{name}: the paper's attacker, trained on clean scores, has "
            f"{static.mean / clean:.1f} times the error it had without a defense"
            + _claim(static, label)
        )
    if gap is not None:
        lines.append(
            f"{name}: the strongest attacker has {values['adaptive_error'].mean / clean:.2f} times "
            f"the clean error, so that G is {gap_spread(gap)}. {_reading(gap)}"
        )
    if "closed_gap" in summary.failed:
        lines.append(
            f"{name}: the strongest attacker has {values['adaptive_error'].mean / clean:.2f} times "
            f"the clean error. {failure_sentence(summary.bound, summary.detection_limit)}"
        )
    retrained = values.get("error retrained")
    if retrained is not None and retrained.mean > label:
        lines.append(
            f"{name}: the retrained attacker did worse ({retrained.mean:.4f}) than the label "
            f"alone ({label:.4f}). Its training failed, so that G here describes these decoders, "
            "and hardly what others can do."
        )
    return lines


def _claim(static: Estimate, label: float) -> str:
    """Compare the paper's attacker with the label alone, as far as the seeds decide it."""
    if _low(static) > label:
        return ", more than the label alone would give: here the paper's claim holds."
    if static.mean > label:
        return ", about what the label alone would give: these seeds do not decide it."
    return ", less than the label alone would give."


def _reading(gap: Estimate) -> str:
    """Return what a closed gap means; between two meanings, that of the mean."""
    if _high(gap) < 0:
        return "The release reveals more to an attacker who adapts than clean scores did."
    if gap.mean < 0.5:
        return "An attacker who adapts undoes most of the defense."
    if gap.mean < 0.95:
        return "An attacker who adapts undoes part of the defense."
    return "No attacker did much better than with the label alone."


def _by_step(noise: Sequence[Summary]) -> list[str]:
    """Compare releases that differ in their step size and in nothing else."""
    alike: dict[str, list[Summary]] = {}
    for summary in noise:
        rows = summary.record.spec["releases"]
        row = next(row for row in rows if row["name"] == summary.release)
        options = {name: value for name, value in row["options"].items() if name != "step_size"}
        if "error retrained" in summary.values:
            key = json.dumps([row["surrogate"], options], sort_keys=True)
            alike.setdefault(key, []).append(summary)
    lines = []
    for group in alike.values():
        if len(group) < 2:
            continue
        steps = {float(summary.record.options["step_size"]): summary for summary in group}
        errors = [(step, steps[step].values["error retrained"]) for step in sorted(steps)]
        first, last = errors[0][1], errors[-1][1]
        meaning = "These seeds do not decide whether the two ends differ."
        if _high(last) < _low(first):
            meaning = "A larger step leaks more to an attacker who retrains."
        elif _low(last) > _high(first):
            meaning = "A larger step leaks less here."
        texts = ", ".join(f"{spread(error, 4)} at step {step:g}" for step, error in errors)
        lines.append(
            "The paper's second improvement, a larger step: the retrained attacker's error is "
            f"{texts}. {meaning}"
        )
    return lines


def _low(estimate: Estimate) -> float:
    """Return the lower end of an interval; with one seed, the number itself."""
    return estimate.mean - (estimate.half_width or 0.0)


def _high(estimate: Estimate) -> float:
    """Return the upper end of an interval; with one seed, the number itself."""
    return estimate.mean + (estimate.half_width or 0.0)
