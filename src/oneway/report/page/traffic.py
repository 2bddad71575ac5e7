"""Of which traffic a certificate speaks, and whether it is held out, in sentences."""

from oneway.defenses.codebook import HeldOut, Traffic

FITTED = (
    "Not held out: the codebook was fitted to these queries too. All figures are too favorable."
)


def held_out_words(held_out: HeldOut) -> str:
    """Return in a few words whether the codebook was fitted without the certified queries."""
    return {
        "yes": "held out: not used for fitting",
        "no": "not held out: used for fitting, too",
        "not checked": "not checked whether they were used for fitting",
    }[held_out.answer]


def held_out_sentence(held_out: HeldOut) -> str:
    """Return whether the codebook was fitted without the certified queries, and how it is known."""
    found = ""
    if held_out.shared is not None and held_out.expected is not None:
        found = (
            f" {held_out.shared:,} distinct queries were fitted, too; fresh draws from the same "
            f"traffic would repeat {held_out.expected:,.1f} on average."
        )
    if held_out.answer == "no":
        return FITTED + found
    if held_out.answer == "yes":
        return f"Held out: the codebook was fitted without these queries.{found}"
    return (
        "Not checked whether these queries are held out: the digests of the fitted queries, or the "
        f"groups of these, are missing. Assumes that they were not used for fitting.{found}"
    )


def traffic_sentences(traffic: Traffic) -> list[str]:
    """Return of which traffic a certificate speaks, and how many people are behind its cells."""
    if traffic.copies == "dropped":
        lines = [
            "Copies of queries were dropped: the figures speak of traffic in which each of these "
            "queries is as frequent as any other. If clients repeat queries, certify with copies."
        ]
    elif traffic.distinct is None or traffic.commonest is None:
        lines = ["Each row counts as a query of its own, since the queries were not given."]
    else:
        lines = [
            f"Copies count as in the traffic: {traffic.distinct:,} distinct queries, the most "
            f"frequent makes up {100 * traffic.commonest:.1f} %."
        ]
    if traffic.groups is None or traffic.one_group is None:
        return lines
    lines.append(
        f"The queries come from {traffic.groups:,} groups; "
        f"{100 * traffic.one_group:.1f} % of queries have a cell that no other group shares."
    )
    if traffic.group_share is not None:
        lines.append(
            f"In the worst cell {100 * traffic.group_share:.1f} % of the queries come from one "
            "group."
        )
    return lines
