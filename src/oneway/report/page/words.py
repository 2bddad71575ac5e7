"""Sentences that several pages share."""

from collections.abc import Mapping
from typing import Any

from oneway.audit import SEEDS

CONFIDENTIAL = (
    "This page shows queries and reconstructions of them: it is as confidential as the queries "
    "themselves. A page without images is made by --no-images."
)

GAP_WORDS = (
    "A release is what leaves the server: the model's scores, after the defense. An attacker asks "
    "the server about pictures or records of its own, learns from the answers how to turn scores "
    "back into inputs, and does so with the scores of somebody else's query.",
    "The closed gap G says how much of what clean scores tell beyond the label is hidden: "
    "0, nothing; 1, the scores tell no more than the label; below 0, the release tells more than "
    "the clean scores did. It is that of the strongest attacker.",
)


def seeds_notice(count: int) -> str:
    """Say that so few seeds are not to be quoted."""
    seeds = "One seed was run" if count == 1 else f"{count} seeds were run"
    return f"{seeds}: not to be quoted. A number that others will read takes {SEEDS}."


def limits(record: Mapping[str, Any]) -> list[str]:
    """Return what may be claimed of an audit, and what not."""
    lines = [
        f"Decoders trained on up to {record['auxiliary']:,} queried examples for "
        f"{record['epochs']} epochs reconstruct no better than this. A stronger attacker may "
        "exist: never say that the release prevents reconstruction.",
        "Not that the label is safe: no label-preserving release can help against attacks that "
        "read only the label, such as those that look for what is typical of a class.",
        "Not that others are safe: other queries, another model or an attacker with more examples "
        "are another audit.",
    ]
    if record["void"]:
        lines.insert(0, "Nothing: this audit is void.")
    elif len(record["seeds"]) < SEEDS:
        lines.insert(0, f"Nothing that is to be published: that takes {SEEDS} seeds.")
    return lines


def environment_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a record was made with."""
    return [
        (
            "Hardware",
            f"{found['processor']}, {found['cores']} cores, {found['threads']} of them used; "
            f"device {found['device']}",
        ),
        (
            "Software",
            f"oneway {found['oneway']}, torch {found['torch']}, Python {found['python']}, "
            f"{found['system']}",
        ),
    ]
