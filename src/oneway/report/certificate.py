"""A certificate in words and as tables."""

from collections.abc import Sequence

from oneway.defenses import Member
from oneway.defenses.codebook import Certificate, CertifiedError
from oneway.report.table import Listing

FITTED = "These queries fitted the codebook too: all figures flatter it."


def certificate_lines(certificate: Certificate) -> list[str]:
    """Return what a certificate says, sentence by sentence."""
    told = certificate
    level = f"{100 * told.level:g} %"
    if told.bits_most is None:
        lines = [
            f"Beyond its label a release tells {told.bits_measured:.2f} bits in the mean, by the "
            "shares of these queries; nothing bounds what one tells."
        ]
    else:
        lines = [
            f"Beyond its label a release tells at most {told.bits_most:.2f} bits, whatever an "
            f"attacker computes; these tell {told.bits_measured:.2f} in the mean."
        ]
    if told.error is None:
        lines.append("The queries themselves were not given, so that no error is certified.")
    else:
        error = told.error
        lines.append(
            "In the mean over queries no attacker's squared error per pixel is below what the "
            f"variance within cells leaves: estimated {error.estimate:.4f} ({level} of resampled "
            f"queries: {error.low:.4f} to {error.high:.4f}); proven, whatever the distribution of "
            f"queries, at {level}: {error.lower_bound:.4f}. From {error.queries} queries."
        )
    if told.independent:
        lines.append("They are taken as queries that it was not fitted to.")
    else:
        lines.append(FITTED)
    if told.error is not None and told.error.alone:
        lines.append(
            f"{100 * told.error.alone:.1f} % of queries are alone in their cell: nothing is "
            "certified of them, and they count as read to the last pixel."
        )
    if told.table and told.bits_most and told.members_least:
        lines.append(
            "Every vector that tells more than its label stands for "
            f"{told.members_least} calibration queries or more."
        )
    if told.labels_alone:
        lines.append(
            f"{told.labels_alone} labels had too few calibration queries: their vectors tell the "
            "label alone."
        )
    moved = told.distortion["l1_probabilities"]
    lines.append(
        f"Probabilities move by {moved['mean']:.4f} in the mean (L1), "
        f"{moved['p95']:.4f} at the 95 % quantile, {moved['max']:.4f} at most."
    )
    return lines


def certificate_table(certificate: Certificate) -> Listing:
    """Return the certified errors, over all queries and by predicted label."""
    rows: list[tuple[str, CertifiedError]] = []
    if certificate.error is not None:
        rows.append(("all", certificate.error))
    rows += sorted(certificate.error_by_label.items(), key=lambda pair: int(pair[0]))
    return Listing(
        "The least mean squared error per pixel of any attacker",
        {
            "label": lambda row: row[0],
            "queries": lambda row: str(row[1].queries),
            "error": lambda row: f"{row[1].estimate:.4f}",
            "low": lambda row: f"{row[1].low:.4f}",
            "high": lambda row: f"{row[1].high:.4f}",
            "lower_bound": lambda row: f"{row[1].lower_bound:.4f}",
            "alone, %": lambda row: f"{100 * row[1].alone:.1f}",
        },
        rows,
    )


def family_table(members: Sequence[Member]) -> Listing:
    """Return what each release of a family moves and certifies."""
    return Listing(
        "Releases that no other beats in both: what they move, and what they certify",
        {
            "release": lambda one: one.defense,
            "options": lambda one: ", ".join(f"{k} {_short(v)}" for k, v in one.options.items()),
            "L1": lambda one: f"{one.l1_mean:.4f}",
            "certified error": lambda one: f"{one.certified:.4f}",
            "alone, %": lambda one: f"{100 * one.alone:.1f}",
            "bits": lambda one: f"{one.bits:.2f}",
        },
        members,
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
