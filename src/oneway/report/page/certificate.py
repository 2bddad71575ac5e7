"""A certificate in sentences, figures and tables, and as a page.

A terminal prints the sentences, the table of errors and the assumptions. The page shows all.
"""

from operator import attrgetter, itemgetter

from oneway.defenses.codebook import (
    ASSUMPTIONS,
    Certificate,
    CertifiedError,
    Yardstick,
    Yardsticks,
)
from oneway.report.page.blocks import Block, Bullets, Facts, Figure, Figures, Grid, Page, Section
from oneway.report.page.charts import Chart, Level, Place, line_chart
from oneway.report.sentences import LABEL_LEAKS, NO_GAP, baselines_sentence, gap_number
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
    "label alone": "error of an attacker who reads the label and nothing else, estimated in the "
    "same way: no release that keeps the label has a larger certified error",
    "clean scores": "error of the best attack that was run on clean scores, on the same queries; "
    "better attacks may exist",
    "mean query": "error of answering each query with the mean of all",
    "certified G": "share of what clean scores reveal beyond the label that the release hides from "
    "any attacker: at least this much, at the certificate's level, by one bet on all three errors; "
    "none: G of 0 or less is not excluded, which takes thousands of queries",
    "worst label": "least certified error of a label, which the mean over all queries hides; the "
    "table has the error of that label alone beside it",
}
"""Meanings of the figures of a certificate, by name."""

GOOD_GAP = 0.5
"""Certified G from which on a verdict is green."""

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
        f"The least mean squared error per pixel of any attacker is estimated at "
        f"{error.estimate:.4f} ({error.queries:,} queries; {level} interval: {error.low:.4f} to "
        f"{error.high:.4f}). Distribution-free lower bound ({level}): {error.lower_bound:.4f}."
    )


NOT_EXCLUDED = (
    "The lower bound does not exclude that the release reveals as much as clean scores do."
)

NO_CLEAN_ATTACK = (
    "No attack was run on clean scores, so that it is not known whether the release hides anything."
)


def yardsticks_sentence(certificate: Certificate, *, ends: bool = True) -> str | None:
    """Return what other guesses err on the same queries; None if no error is certified.

    Args:
        certificate: The certificate.
        ends: Whether to give the ends of intervals.
    """
    yardsticks = certificate.yardsticks
    if yardsticks is None:
        return None
    clean, label, prior = (
        "not measured"
        if each is None
        else f"{each.error:.4f}" + (f" ({each.low:.4f} to {each.high:.4f})" if ends else "")
        for each in (yardsticks.clean, yardsticks.label, yardsticks.prior)
    )
    return baselines_sentence(clean, label, prior)


def gap_sentence(certificate: Certificate) -> str | None:
    """Return what the bound proves beside clean scores; None if no error is certified."""
    error, yardsticks = certificate.error, certificate.yardsticks
    if error is None or yardsticks is None:
        return None
    if yardsticks.clean is None:
        return NO_CLEAN_ATTACK
    gap = yardsticks.gap(error.estimate)
    if gap is None:
        return f"{NO_GAP} {NOT_EXCLUDED}" if yardsticks.least_gap is None else NO_GAP
    estimate = f"Estimated G: {gap_number(gap)}."
    if yardsticks.least_gap is None:
        return f"{NOT_EXCLUDED} {estimate}"
    return (
        f"Of what clean scores reveal beyond the label, the release hides at least "
        f"{100 * yardsticks.least_gap:.0f} % from any attacker "
        f"({100 * certificate.level:g} %). {estimate}"
    )


def worst_label(certificate: Certificate) -> str | None:
    """Return the label with the least certified error; None if no label has one."""
    by_label = certificate.error_by_label
    return min(by_label, key=lambda label: by_label[label].estimate, default=None)


def yardsticks_of(yardsticks: Yardsticks) -> list[tuple[str, Yardstick]]:
    """Return the errors to compare with, by name in ``MEANINGS``."""
    errors = [("label alone", yardsticks.label), ("clean scores", yardsticks.clean)]
    errors.append(("mean query", yardsticks.prior))
    return [(name, each) for name, each in errors if each is not None]


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
    for line in (yardsticks_sentence(certificate), gap_sentence(certificate)):
        if line is not None:
            lines.append(line)
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
    tone, yardsticks = "mixed", certificate.yardsticks
    least = None if yardsticks is None else yardsticks.least_gap
    if yardsticks is None:
        stamp = "Bits are certified, no error is"
    elif not certificate.independent:
        stamp = "Certified on the queries that fitted it"
    elif yardsticks.clean is None:
        stamp = "Certified, and not compared with clean scores"
    elif least is None:
        stamp = "Not proven to hide more than clean scores do"
    else:
        tone = "good" if least >= GOOD_GAP else "mixed"
        stamp = f"Hides at least {100 * least:.0f} % of the gap from any attacker"
    parts = (
        error_sentence(certificate),
        yardsticks_sentence(certificate, ends=False),
        gap_sentence(certificate),
        bits_sentence(certificate),
    )
    return tone, stamp, " ".join(part for part in parts if part is not None)


def certificate_figures(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the figures to see first: value, and name in ``MEANINGS``."""
    error, most = certificate.error, certificate.bits_most
    yardsticks, worst = certificate.yardsticks, worst_label(certificate)
    figures = []
    if error is not None and yardsticks is not None:
        figures = [
            (f"{error.estimate:.4f}", "certified error"),
            *((f"{each.error:.4f}", name) for name, each in yardsticks_of(yardsticks)),
            (f"{error.lower_bound:.4f}", "lower bound"),
        ]
        if yardsticks.clean is not None:
            least = yardsticks.least_gap
            figures.append(("none" if least is None else f"{least:.2f}", "certified G"))
    if worst is not None:
        estimate = certificate.error_by_label[worst].estimate
        figures.append((f"{worst}: {estimate:.4f}", "worst label"))
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


def _of_label_alone(certificate: Certificate, label: str) -> float | None:
    yardsticks = certificate.yardsticks
    if yardsticks is None:
        return None
    return yardsticks.label.error if label == "all" else yardsticks.by_label.get(label)


def certificate_table(certificate: Certificate) -> Listing:
    """Return the certified errors, over all queries and by predicted label."""
    rows = [
        {
            "label": label,
            **vars(error),
            "alone": 100 * error.alone,
            "label alone": _of_label_alone(certificate, label),
        }
        for label, error in certified_errors(certificate)
    ]
    return Listing(
        "The least mean squared error per pixel of any attacker",
        {
            "label": Column(itemgetter("label")),
            "queries": Column(itemgetter("queries")),
            "error": Column(itemgetter("estimate"), ".4f", MEANINGS["certified error"]),
            "low": Column(itemgetter("low"), ".4f", MEANINGS["low"]),
            "high": Column(itemgetter("high"), ".4f", MEANINGS["high"]),
            "lower bound": Column(itemgetter("lower_bound"), ".4f", MEANINGS["lower bound"]),
            "label alone": Column(itemgetter("label alone"), ".4f", MEANINGS["label alone"]),
            "alone, %": Column(itemgetter("alone"), ".1f", MEANINGS["alone"]),
        },
        rows,
    )


def distortion_table(certificate: Certificate) -> Listing:
    """Return how far a release moves scores, over queries."""
    names = {"mean": "mean", "p50": "median", "p95": "95 %", "p99": "99 %", "max": "most"}
    columns = {"distance": Column(itemgetter("distance"))}
    columns |= {name: Column(itemgetter(key), ".4f") for key, name in names.items()}
    distortion = certificate.distortion
    rows = [{"distance": text, **distortion[name]} for name, text in DISTANCES.items()]
    return Listing("Distortion of released scores, over queries", columns, rows)


def certificate_page(certificate: Certificate, name: str, command: str = "") -> Page:
    """Return the page of a certificate.

    Args:
        certificate: The certificate.
        name: Name of the codebook, such as its file's.
        command: The command that certified it, if it is known.
    """
    notices = [LABEL_LEAKS]
    if not certificate.independent:
        notices.append(FITTED)
    alone = alone_sentence(certificate)
    if alone is not None:
        notices.append(alone)
    figures = [
        Figure(value, each[0].upper() + each[1:], MEANINGS[each])
        for value, each in certificate_figures(certificate)
    ]
    sections = [
        Section("numbers", "In numbers", [Figures(figures)]),
        Section("words", "In words", [Bullets(certificate_lines(certificate))]),
    ]
    if certificate.error is not None:
        blocks: list[Block] = [_chart(certificate), Grid(certificate_table(certificate))]
        sections.append(Section("errors", "The least error of any attacker", blocks))
    sections += [
        Section("moved", "What users lose", [Grid(distortion_table(certificate))]),
        Section("rests", "Assumptions", [Bullets(ASSUMPTIONS)]),
        Section("how", "How it was certified", [Facts(_facts(certificate, command))]),
    ]
    tone, stamp, verdict = certificate_verdict(certificate)
    queries = "not used for fitting" if certificate.independent else "used for fitting, too"
    return Page(
        kind="certificate",
        title=f"What {name} lets out, at most",
        subtitle=f"Certified on {certificate.queries:,} queries, {queries}.",
        tone=tone,
        stamp=stamp,
        verdict=verdict,
        notices=notices,
        sections=sections,
    )


def _chart(certificate: Certificate) -> Chart:
    """Return the certified error, and that of each label, on a line from a perfect attacker on."""
    rows = [
        ("all queries" if label == "all" else f"label {label}", error)
        for label, error in certified_errors(certificate)
    ]
    places = [
        Place(name, error.estimate, f"{error.estimate:.4f}", place == 0, error.low, error.high)
        for place, (name, error) in enumerate(rows)
    ]
    title = "Least error of any attacker (0: fully reconstructed)"
    total = rows[0][1]
    levels = [Level("fully reconstructed", 0.0), Level("lower bound", total.lower_bound)]
    if certificate.yardsticks is not None:
        errors = yardsticks_of(certificate.yardsticks)
        levels += [Level(name, each.error) for name, each in errors]
    columns = {"queries": Column(attrgetter("label")), "error": Column(attrgetter("text"))}
    columns |= {end: Column(attrgetter(end), ".4f") for end in ("low", "high")}
    return line_chart(
        "certified-chart",
        title,
        f"A line of mean squared errors from 0 on. All queries: {total.estimate:.4f}, from "
        f"{total.low:.4f} to {total.high:.4f}; and {len(rows) - 1} labels by themselves. To "
        f"compare with: {', '.join(f'{each.label} {each.value:.4f}' for each in levels)}.",
        sorted(levels, key=attrgetter("value")),
        places,
        numbers=Listing(title, columns, places),
        banded=False,
    )


def _facts(certificate: Certificate, command: str) -> list[tuple[str, str]]:
    facts = [("Command", command)] if command else []
    level = f"{100 * certificate.level:g} %"
    table = certificate.table[:16] + "..." if certificate.table else "none"
    return [
        *facts,
        ("Queries", f"{certificate.queries:,}"),
        ("Level of intervals and bounds", level),
        ("Table", table),
    ]
