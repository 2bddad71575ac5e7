"""Sentences that terminals, pages and Markdown share, each worded here alone."""

import math
from collections.abc import Mapping, Sequence

from oneway.attacks import ATTACKS
from oneway.auditing import SEEDS, InversionRecord
from oneway.evaluation import Convergence, Environment, Provenance

LABEL_LEAKS = "No label-preserving release can help against attacks that read only the label."
"""The limit that stands in every report."""

NO_CONTROLS = "No controls were run: these attackers are untested."

NO_GAP = "There is no gap to close: clean scores add nothing to the label for these attackers."

CONFIDENTIAL = (
    "This page shows queries and reconstructions of them: it is as confidential as the queries "
    "themselves. Pass --no-images for a page without images."
)

READING = (
    "A release is what leaves the server: the model's scores, after the defense. An attacker "
    "queries the server with their own pictures or records, and learns from the answers how to "
    "turn scores back into inputs. Then the attacker inverts the scores of another person's query.",
    "The closed gap G says how much of what clean scores reveal beyond the label is hidden: 0 = "
    "nothing, 1 = the release reveals no more than the label, below 0 = the release reveals more "
    "than clean scores did. G is that of the strongest attacker. Where no trained attacker does "
    "better than the label alone, the attack failed, and G is not measured. Then a bound stands in "
    "its place: 1 less the smallest known leak that these attackers find, less the uncertainty.",
)
"""How to read a report, for people who have never seen one."""


MARK = "†"
"""Marks a number of stale records, which today's attackers have not measured."""

OLDER = "measured by older attackers"
"""Marks a claim, or a table of a benchmark's records, that today's attackers have not measured."""

NOT_TRAINED_OUT = (
    f"{MARK} Not trained out: there is no record, or older attackers made it. Today's attackers "
    "may read more from the release, so that its G may be lower."
)
"""The meaning of ``MARK``."""

STALE_AUDIT = (
    "Not trained out: older attackers made this audit. Today's attackers may read more from the "
    "release, so that its G may be lower."
)


def gap_number(value: float, digits: int = 2) -> str:
    """Return a measured G as text; one below 1 is never rounded up to 1, which says too much.

    Args:
        value: G.
        digits: Digits after the point; more are given where G would be rounded up to 1.
    """
    while value < 1 and round(value, digits) >= 1 and digits < MOST_DIGITS:
        digits += 1
    return f"{value:.{digits}f}"


MOST_DIGITS = 6
"""Most digits of G after the point."""

FAILED = "attack failed"
"""What stands in the place of a closed gap of which nothing can be claimed."""


def bound_text(bound: float | None) -> str:
    """Return what may be claimed of G where the trained attackers failed, in a few words.

    Args:
        bound: Bound of G, from 0 to 1; None if nothing can be claimed. It is never rounded up.
    """
    return FAILED if bound is None else f"≥ {rounded_down(bound)} (failed)"


def rounded_down(bound: float) -> str:
    """Return a bound with two digits after the point."""
    return f"{math.floor(100 * bound) / 100:.2f}"


def failure_sentence(bound: float | None, limit: float | None) -> str:
    """Return what a failed attack says of G, in a sentence.

    Args:
        bound: Bound of G; None if nothing can be claimed.
        limit: Detection limit of the attackers, as a share of the gap; None if it is not known.
    """
    failed = "The trained attackers failed: none does better than the label alone."
    if bound is not None and limit is not None:
        return (
            f"{failed} G ≥ {rounded_down(bound)} against these attackers, who find known leaks "
            f"that are worth {100 * limit:g} % of the gap."
        )
    why = (
        "they are not known to find a leak, however large"
        if limit is None
        else "too few queries grade them"
    )
    return f"{failed} Nothing is claimed of G, since {why}."


def knows(attack: str, *, of_records: bool = False) -> str:
    """Return what an attacker knows; empty for an attack that is not registered."""
    known = ATTACKS[attack].knows if attack in ATTACKS else ""
    return known.replace("image", "record") if of_records else known


def baselines_sentence(clean: str, label: str, prior: str) -> str:
    """Return the three baselines, given as text, in a sentence."""
    return (
        f"Baselines (mean squared error): best attack on clean scores {clean}, given the label "
        f"alone {label}, answering with the mean input {prior}."
    )


def flag_line(name: str, detail: str) -> str:
    """Return a raised flag in a line, with the page that explains it."""
    return f"flag {name}: {detail} [docs/flags/{name}.md]"


def seeds_text(counts: Sequence[int]) -> str:
    """Return one or several numbers of seeds, such as ``1 seed`` or ``1 to 3 seeds``."""
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} seed{'s' if most > 1 else ''}"


def seeds_notice(count: int, releases: Sequence[str] = ()) -> str:
    """Return the warning that a result has too few seeds.

    Args:
        count: Number of seeds.
        releases: Names of the releases with too few seeds; empty: all releases.
    """
    of = f" of {'; '.join(releases)}" if releases else ""
    ran = "1 seed was" if count == 1 else f"{count} seeds were"
    return f"Only {ran} run{of}: do not quote. Use at least {SEEDS} seeds for shared results."


def trained_out(convergence: Mapping[str, Convergence]) -> str:
    """Return whether all decoders were trained out; if not, the largest gain of the gap.

    Args:
        convergence: Convergence of each attacker, by name; empty: not recorded.
    """
    if not convergence:
        return "not recorded"
    late = [each for each in convergence.values() if not each.shown]
    if not late:
        return "yes"
    gains = [each.gain for each in late if each.gain is not None]
    return f"no ({100 * max(gains):.1f} %)" if gains else "no"


def epochs_of(record: InversionRecord) -> str:
    """Return for how many epochs decoders were trained, and whether twice as many gain nothing."""
    both = {"": record.convergence, " on clean scores": record.clean_convergence}
    lengths = {each.epochs for convergence in both.values() for each in convergence.values()}
    if not lengths:
        return "epochs whose number this record lacks"
    counts = " to ".join(map(str, sorted({min(lengths), max(lengths)})))
    late = [
        f"{name}{scores}"
        for scores, convergence in both.items()
        for name, each in convergence.items()
        if not each.shown
    ]
    gain = (
        f"more might still lower the error of {', '.join(late)}"
        if late
        else "twice as many gained less than 1 % of the gap"
    )
    return f"{counts} epochs ({gain})"


def audit_limits(record: InversionRecord) -> list[str]:
    """Return sentences about claims that an audit allows, and claims that it does not."""
    attackers = (
        f"Decoders trained on up to {record.auxiliary:,} queried examples for {epochs_of(record)}"
        if record.plan.decoders
        else f"Attackers with {record.auxiliary:,} queried examples, who train no decoders,"
    )
    lines = [
        f"{attackers} reconstruct no better than this. A stronger attacker may exist: never say "
        "that the release prevents reconstruction.",
        f"Do not claim that the label is safe. {LABEL_LEAKS} Such attacks look for what is typical "
        "of a class.",
        "Do not claim that others are safe: other queries, another model, or an attacker with more "
        "examples need another audit.",
    ]
    if record.void:
        return ["Claim nothing: this audit is void.", *lines]
    if len(record.seeds) < SEEDS:
        return [f"Publish nothing: that takes at least {SEEDS} seeds.", *lines]
    return lines


EXPERIMENT_LIMITS = (
    "Decoders of these sizes, trained on so many queried images, reconstruct no better than this. "
    "A stronger attacker may exist: never say that a release prevents reconstruction.",
    f"Do not claim that the label is safe. {LABEL_LEAKS}",
    f"Publish nothing with fewer than {SEEDS} seeds. Intervals are Student's t intervals of means "
    "over seeds of splits, target, defense and attackers. They hold if values of seeds are about "
    "normally distributed, which so few seeds cannot show.",
    "Do not claim that another model, other data or more auxiliary images would give the same.",
)


def attackers_fact(names: Sequence[str]) -> tuple[str, str]:
    """Return which attackers took part, and what each knows."""
    return "Attackers", "; ".join(f"{name}: {knows(name)}" for name in names)


def provenance_facts(provenance: Provenance) -> list[tuple[str, str]]:
    """Return when and by which code a record was made, and hashes of its data and model."""
    code = provenance.commit or "an installed package"
    return [
        ("Made", f"{provenance.date} by {code}"),
        ("Data, SHA-256", provenance.data),
        ("Model, SHA-256", provenance.model or "not at hand"),
    ]


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """Return the hardware and software of a record."""
    machine = environment
    return [
        (
            "Hardware",
            f"{machine.processor}, {machine.cores} cores, {machine.threads} of them used; "
            f"device {machine.device}",
        ),
        (
            "Software",
            f"oneway {machine.oneway}, torch {machine.torch}, Python {machine.python}, "
            f"{machine.system}",
        ),
    ]
