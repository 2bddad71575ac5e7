"""Sentences that terminals, pages and Markdown share, each worded here alone."""

from collections.abc import Sequence

from oneway.attacks import ATTACKS
from oneway.audit import SEEDS, AuditRecord
from oneway.evaluation import Environment, Provenance

LABEL_LEAKS = "No label-preserving release can help against attacks that read only the label."
"""The limit that stands in every report."""

NO_CONTROLS = "No controls were run: nothing vouches for these attackers."

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
    "than clean scores did. G is that of the strongest attacker.",
)
"""How to read a report, for people who have never seen one."""


MARK = "†"
"""Marks a number of stale records, which today's attackers have not measured."""

NOT_TRAINED_OUT = (
    f"{MARK} Not trained out: there is no record, or older attackers made it. Today's attackers "
    "may read more from the release, so that its G may be lower."
)
"""The meaning of ``MARK``."""

STALE_AUDIT = (
    "Not trained out: older attackers made this audit. Today's attackers may read more from the "
    "release, so that its G may be lower."
)


def knows(attack: str, *, of_records: bool = False) -> str:
    """Return what an attacker knows; empty for an attack that is not registered.

    Args:
        attack: Its registered name.
        of_records: Whether queries are records, and no images.
    """
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


def seeds_notice(count: int, releases: Sequence[str] = ()) -> str:
    """Return the warning that a result has too few seeds.

    Args:
        count: Number of seeds.
        releases: Names of the releases with too few seeds; empty: all releases.
    """
    of = f" of {'; '.join(releases)}" if releases else ""
    ran = "1 seed was" if count == 1 else f"{count} seeds were"
    return f"Only {ran} run{of}: do not quote. Use at least {SEEDS} seeds for shared results."


def audit_limits(record: AuditRecord) -> list[str]:
    """Return sentences about claims that an audit allows, and claims that it does not."""
    lines = [
        f"Decoders trained on up to {record.auxiliary:,} queried examples for "
        f"{record.epochs} epochs reconstruct no better than this. A stronger attacker may "
        "exist: never say that the release prevents reconstruction.",
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
    "over seeds of splits, target, defense and attackers.",
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
