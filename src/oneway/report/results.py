"""The results page: every word and number of it comes from stored records."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from oneway.benchmark import Estimate, Published, Summary, bundled_spec, summarise
from oneway.errors import UnknownNameError
from oneway.report.frontier import frontier_lines
from oneway.report.summary import (
    certificates_table,
    costs_table,
    published_table,
    spread,
    summary_remarks,
    summary_table,
)

Record = Mapping[str, Any]

NOISE = "adversarial-noise"

LEADERBOARD = "leaderboard"


def results_page(records: Sequence[Record], theirs: Mapping[str, Published], command: str) -> str:
    """Return the page as Markdown.

    Args:
        records: Of all experiments, presets and seeds.
        theirs: What the paper printed, by experiment.
        command: What makes this page.
    """
    parts = [
        "# Results\n",
        f"Made by `{command}` from stored records; not edited by hand. Errors are mean "
        "squared errors per pixel. `static` is the paper's attacker, trained on clean scores; "
        "`retrained` trains on what is released; `adaptive` is the paper's adversarial training "
        "(it knows the algorithm and its parameters), or, for releases that are random, an "
        "attacker who asks each query again and again and averages the answers.\n",
    ]
    for (experiment, preset), group in by_experiment(records).items():
        summaries = summarise(group)
        parts.append(_section(experiment, preset, summaries, theirs.get(experiment)))
    return "\n".join(parts)


def by_experiment(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return records by their experiment and preset, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["experiment"], record["preset"]), []).append(record)
    return groups


def _section(
    experiment: str, preset: str, summaries: Sequence[Summary], theirs: Published | None
) -> str:
    data = summaries[0].record["spec"]["data"]
    side = f", scaled to {data['side']}x{data['side']}" if data["side"] else ""
    title = f"Beside the paper's {theirs.table}" if theirs and theirs.rows else experiment
    lines = [
        f"## {experiment}" + (f", preset {preset}" if preset else "") + "\n",
        f"{title}. {data['private']:,} private, {data['auxiliary']:,} auxiliary images, "
        f"{data['test']:,} queries{side}. `{command_of(experiment, preset)}`; "
        f"{seeds_of(summaries)}; {_machines(summaries)}.\n",
        "### Measured\n",
        summary_table(summaries, "").markdown(),
        *_frontier(experiment, preset, summaries),
        *_bullets(summary_remarks(summaries)),
        "\n### What it costs\n",
        "Training is what a defense needs besides the target. Milliseconds depend on what else the "
        "machine was doing; compare them with those of no defense.\n",
        costs_table(summaries).markdown(),
        *_certificates(summaries),
    ]
    if theirs is not None and theirs.rows:
        lines += [
            "### Printed in the paper\n",
            published_table(theirs, summaries).markdown(),
        ]
    if theirs is not None:
        lines += _bullets([remark.text for remark in theirs.remarks])
    lines += ["\n### In words\n", *_bullets(verdict_lines(summaries)), ""]
    return "\n".join(lines)


def _certificates(summaries: Sequence[Summary]) -> list[str]:
    """Return what releases with a certificate certify, beside what attackers reached."""
    table = certificates_table(summaries)
    if not table.rows:
        return []
    return [
        "\n### What is certified\n",
        "The least error of any attacker, estimated on calibration queries that fitted nothing: on "
        "other queries than the attackers were graded on, so that either may be a little lower.\n",
        table.markdown(),
    ]


def _frontier(experiment: str, preset: str, summaries: Sequence[Summary]) -> list[str]:
    """Return the picture of a leaderboard, and its frontiers in words."""
    if experiment != LEADERBOARD:
        return []
    picture = f"![G against distortion](images/{experiment}-{preset}.png)\n"
    return [picture, *_bullets(frontier_lines(summaries))]


def command_of(experiment: str, preset: str) -> str:
    """Say what makes these records; whoever wrote the experiment knows where its file is."""
    if experiment == LEADERBOARD:
        return f"oneway leaderboard --data {preset}"
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
    """Name the seeds; and the releases, where they have not all the same."""
    releases: dict[tuple[int, ...], list[str]] = {}
    for summary in summaries:
        releases.setdefault(summary.seeds, []).append(summary.release)
    told = {seeds: "seeds " + ", ".join(map(str, seeds)) for seeds in releases}
    if len(releases) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{told[seeds]} of {' and '.join(names)}" for seeds, names in releases.items())


def _machines(summaries: Sequence[Summary]) -> str:
    machines = {
        f"{found['processor']}, {found['cores']} cores, {found['threads']} of them used, device "
        f"{found['device']}, torch {found['torch']}": None
        for summary in summaries
        for found in summary.environments
    }
    return "; and ".join(machines)


def verdict_lines(summaries: Sequence[Summary]) -> list[str]:
    """Say where the paper's claim holds and where it does not, from the numbers alone."""
    lines = []
    noise = [summary for summary in summaries if summary.record["defense"] == NOISE]
    for summary in noise:
        clean = summary.values["baseline clean"].mean
        label = summary.values["baseline label"].mean
        static = summary.values.get("error static")
        strongest = summary.values["adaptive_error"].mean
        gap = summary.values.get("closed_gap")
        if static is not None:
            lines.append(
                f"**{summary.release}**: the attacker of the paper, trained on clean scores, has "
                f"{static.mean / clean:.1f} times the error it had without a defense"
                + _claim(static, label)
            )
        if gap is not None:
            lines.append(
                f"**{summary.release}**: the strongest attacker has {strongest / clean:.2f} times "
                f"the clean error, so that G is {spread(gap, 2)}. {_reading(gap)}"
            )
        retrained = summary.values.get("error retrained")
        if retrained is not None and retrained.mean > label:
            lines.append(
                f"**{summary.release}**: the retrained attacker did worse ({retrained.mean:.4f}) "
                f"than the label alone ({label:.4f}): its training failed, so that G here says "
                "what these decoders can't do, and little of what others can."
            )
    lines += _by_step(noise)
    ranked = sorted(
        (s for s in summaries if s.record["defense"] != "none" and "closed_gap" in s.values),
        key=lambda s: -s.values["closed_gap"].mean,
    )
    if ranked:
        order = ", ".join(
            f"{s.release} {s.values['closed_gap'].mean:.2f} "
            f"({100 * s.values['accuracy'].mean:.1f} % accuracy, "
            f"L1 {s.values['l1_mean'].mean:.3f})"
            for s in ranked
        )
        lines.append(f"By closed gap: {order}.")
    return lines


def _claim(static: Estimate, label: float) -> str:
    """Compare the paper's attacker with the label alone, as far as the seeds tell."""
    if static.mean - _half(static) > label:
        return ", more than the label alone would give it: here the paper's claim holds."
    if static.mean > label:
        return ", about what the label alone would give it: these seeds do not tell."
    return ", less than the label alone would give it."


def _reading(gap: Estimate) -> str:
    """Say what a closed gap means; between two readings, the one its interval reaches into."""
    if gap.mean + _half(gap) < 0:
        return "The release tells an attacker who adapts *more* than clean scores did."
    if gap.mean < 0.5:
        return "Whoever adapts undoes most of the defense."
    if gap.mean < 0.95:
        return "Whoever adapts undoes part of the defense."
    return "Nobody here did much better than with the label alone."


def _by_step(noise: Sequence[Summary]) -> list[str]:
    """Compare rows of one defense that differ in their step size and in nothing else."""
    families: dict[str, list[Summary]] = {}
    for summary in noise:
        row = _row_of(summary)
        options = {name: value for name, value in row["options"].items() if name != "step_size"}
        if "error retrained" in summary.values:
            key = json.dumps([row["surrogate"], options], sort_keys=True)
            families.setdefault(key, []).append(summary)
    lines = []
    for family in families.values():
        ordered = sorted(family, key=lambda s: float(s.record["options"]["step_size"]))
        if len(ordered) < 2:
            continue
        first, last = (summary.values["error retrained"] for summary in (ordered[0], ordered[-1]))
        told = ", ".join(
            f"{spread(summary.values['error retrained'], 4)} at step "
            f"{summary.record['options']['step_size']:g}"
            for summary in ordered
        )
        meaning = "The two ends are not told apart by these seeds."
        if last.mean + _half(last) < first.mean - _half(first):
            meaning = "More step, more leakage to whoever retrains."
        elif last.mean - _half(last) > first.mean + _half(first):
            meaning = "More step, less leakage here."
        lines.append(
            "A larger step, the paper's second improvement: the retrained attacker's error is "
            f"{told}. {meaning}"
        )
    return lines


def _half(estimate: Estimate) -> float:
    """Return half the width of the interval; of one seed, none is known and none is claimed."""
    return 0.0 if estimate.half_width is None else estimate.half_width


def _row_of(summary: Summary) -> Mapping[str, Any]:
    rows: Sequence[Mapping[str, Any]] = summary.record["spec"]["releases"]
    return next(row for row in rows if row["name"] == summary.release)


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]
