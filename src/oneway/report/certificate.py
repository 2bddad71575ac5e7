"""A certificate in words, figures and tables: the only wording, for terminals, pages and docs."""

from collections.abc import Sequence

from oneway.defenses import ReleaseCandidate
from oneway.defenses.codebook import Certificate, CertifiedError
from oneway.report.table import Column, Listing

MEANINGS = {
    "certified error": "estimated least mean squared error per pixel of any attacker, averaged "
    "over queries: the unbiased variance within cells; a query that is alone in its cell counts as "
    "fully reconstructed",
    "low": "lower end of the error's interval, by a bootstrap over queries",
    "high": "upper end of that interval",
    "lower bound": "distribution-free lower bound on the error (empirical Bernstein and Chernoff); "
    "far below the estimate unless there are thousands of queries",
    "bits, at most": "log2 of the label's cells: what one answer can reveal beyond its label, to "
    "any attacker",
    "bits, measured": "entropy of the cells given the label, over certified queries",
    "members, at least": "calibration queries behind any vector that reveals more than its label; "
    "copies of a query count once",
    "labels alone": "labels with too few calibration queries: their vector reveals the label alone",
    "distortion": "L1 distance of probabilities, from 0 to 2, and difference of centered logits in "
    "nats per class: mean, quantiles and maximum",
    "alone": "share of queries that are alone in their cell",
}
"""What each figure of a certificate says, by its name."""

FITTED = "The codebook was fitted to these queries too: all figures are too favorable."

DISTANCES = {
    "l1_probabilities": "L1 of probabilities",
    "logits": "centered logits, nats per class",
}


def bits_sentence(certificate: Certificate) -> str:
    """Return what a release reveals beyond its label."""
    measured = f"{certificate.bits_measured:.2f} bits on average over these queries"
    if certificate.bits_most is None:
        return f"Beyond its label a release reveals {measured}; nothing bounds a single release."
    most = f"at most {certificate.bits_most:.2f} bits to any attacker"
    return f"Beyond its label a release reveals {most}; {measured}."


def error_sentence(certificate: Certificate) -> str:
    """Return the least error of any attacker, and how sure it is."""
    error = certificate.error
    if error is None:
        return "No error is certified, since the queries themselves were not given."
    level = f"{100 * certificate.level:g} %"
    return (
        f"Any attacker's mean squared error per pixel is at least {error.estimate:.4f} (estimated "
        f"from {error.queries:,} queries; {level} interval: {error.low:.4f} to {error.high:.4f}). "
        f"Distribution-free lower bound ({level}): {error.lower_bound:.4f}."
    )


def alone_sentence(certificate: Certificate) -> str | None:
    """Return how many queries are alone in their cell; None if none are."""
    error = certificate.error
    if error is None or not error.alone:
        return None
    share = f"{100 * error.alone:.1f} %"
    return f"{share} of queries are alone in their cell and count as fully reconstructed."


def certificate_lines(certificate: Certificate) -> list[str]:
    """Return what a certificate says, sentence by sentence."""
    lines = [bits_sentence(certificate), error_sentence(certificate)]
    if certificate.independent:
        lines.append("Assumes that these queries were not used for fitting.")
    else:
        lines.append(FITTED)
    alone = alone_sentence(certificate)
    if alone is not None:
        lines.append(alone)
    if certificate.table and certificate.bits_most and certificate.members_least:
        lines.append(
            "Every vector that reveals more than its label stands for at least "
            f"{certificate.members_least} calibration queries."
        )
    if certificate.labels_alone:
        lines.append(
            f"{certificate.labels_alone} labels had too few calibration queries: their vectors "
            "reveal the label alone."
        )
    l1 = certificate.distortion["l1_probabilities"]
    lines.append(
        f"Probabilities move by {l1['mean']:.4f} on average (L1 distance), {l1['p95']:.4f} at the "
        f"95 % quantile, {l1['max']:.4f} at most."
    )
    return lines


def certificate_verdict(certificate: Certificate) -> tuple[str, str, str]:
    """Return the tone of the verdict, the verdict in a few words, and in full."""
    if certificate.error is None:
        tone, stamp = "mixed", "Bits are certified, no error is"
    elif certificate.independent:
        tone, stamp = "good", "Certified for any attacker"
    else:
        tone, stamp = "mixed", "Certified on the queries that fitted it"
    return tone, stamp, f"{error_sentence(certificate)} {bits_sentence(certificate)}"


def certificate_figures(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the figures to see first: value, and name in ``MEANINGS``."""
    error, most = certificate.error, certificate.bits_most
    figures = []
    if error is not None:
        figures = [
            (f"{error.estimate:.4f}", "certified error"),
            (f"{error.lower_bound:.4f}", "lower bound"),
        ]
    return [
        *figures,
        ("no bound" if most is None else f"{most:.2f}", "bits, at most"),
        (f"{certificate.bits_measured:.2f}", "bits, measured"),
        (f"{certificate.members_least}", "members, at least"),
        (f"{certificate.distortion['l1_probabilities']['mean']:.4f}", "distortion"),
        (f"{certificate.labels_alone}", "labels alone"),
    ]


def certified_errors(certificate: Certificate) -> list[tuple[str, CertifiedError]]:
    """Return the certified errors: of all queries, and of each predicted label."""
    by_label = sorted(certificate.error_by_label.items(), key=lambda pair: int(pair[0]))
    return ([] if certificate.error is None else [("all", certificate.error)]) + by_label


def certificate_table(certificate: Certificate) -> Listing:
    """Return the certified errors, over all queries and by predicted label."""
    return Listing(
        "The least mean squared error per pixel of any attacker",
        {
            "label": Column(lambda row: row[0]),
            "queries": Column(lambda row: row[1].queries),
            "error": Column(lambda row: row[1].estimate, ".4f", MEANINGS["certified error"]),
            "low": Column(lambda row: row[1].low, ".4f", MEANINGS["low"]),
            "high": Column(lambda row: row[1].high, ".4f", MEANINGS["high"]),
            "lower bound": Column(lambda row: row[1].lower_bound, ".4f", MEANINGS["lower bound"]),
            "alone, %": Column(lambda row: 100 * row[1].alone, ".1f", MEANINGS["alone"]),
        },
        certified_errors(certificate),
    )


def distortion_table(certificate: Certificate) -> Listing:
    """Return how far a release moves scores, over queries."""

    def figure(key: str) -> Column:
        return Column(lambda row: row[1][key], ".4f")

    names = {"mean": "mean", "p50": "median", "p95": "95 %", "p99": "99 %", "max": "most"}
    columns = {"distance": Column(lambda row: DISTANCES[row[0]])}
    columns |= {name: figure(key) for key, name in names.items()}
    rows = list(certificate.distortion.items())
    return Listing("Distortion of released scores, over queries", columns, rows)


def candidates_table(candidates: Sequence[ReleaseCandidate]) -> Listing:
    """Return what each candidate release moves and certifies."""
    return Listing(
        "Pareto-optimal releases: distortion and certified error",
        {
            "release": Column(lambda row: row.defense),
            "options": Column(
                lambda row: ", ".join(
                    f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.options.items()
                )
            ),
            "L1": Column(lambda row: row.l1_mean, ".4f"),
            "certified error": Column(lambda row: row.certified, ".4f"),
            "alone, %": Column(lambda row: 100 * row.alone, ".1f"),
            "bits": Column(lambda row: row.bits, ".2f"),
        },
        candidates,
    )
