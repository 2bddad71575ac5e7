"""A certificate in sentences, figures and tables, and as a page.

A terminal prints the sentences, the table of errors and the assumptions. The page shows all.
"""

from operator import attrgetter, itemgetter

import oneway
from oneway.defenses.codebook import (
    ASSUMPTIONS,
    Certificate,
    CertifiedError,
    Yardstick,
    Yardsticks,
    fault_of_reference,
)
from oneway.report.page.blocks import Block, Bullets, Facts, Figure, Figures, Grid, Page, Section
from oneway.report.page.charts import Chart, Level, Place, line_chart
from oneway.report.page.composition import MEANINGS as COMPOSITION
from oneway.report.page.composition import composition_lines, composition_sections
from oneway.report.page.identification import MEANINGS as IDENTIFICATION
from oneway.report.page.identification import (
    identification_figures,
    identification_lines,
    identification_sections,
)
from oneway.report.page.traffic import held_out_sentence, held_out_words, traffic_sentences
from oneway.report.page.versions import MEANINGS as VERSIONS
from oneway.report.page.versions import version_lines, version_sections
from oneway.report.sentences import LABEL_LEAKS, NO_GAP, baselines_sentence, gap_number
from oneway.report.table import Column, Listing

MEANINGS = {
    **IDENTIFICATION,
    **VERSIONS,
    **COMPOSITION,
    "certified error": "estimated least mean squared error per pixel of any attacker, averaged "
    "over queries: the unbiased variance within cells; a query that is alone in its cell counts as "
    "fully reconstructed",
    "low": "lower end of the error's interval, which holds for any distribution of queries",
    "high": "upper end of that interval; queries without another one in their cell may add up to "
    "1/4 each",
    "lower bound": "lower bound on the error that holds for any distribution of queries, by "
    "betting; on digits 92 % of the estimate with 400 queries, 97 % with 2,000",
    "bits, at most": "log2 of the label's cells: what one answer can reveal beyond its label, to "
    "any attacker",
    "bits, measured": "entropy of the cells given the label, over certified queries",
    "members, at least": "distinct calibration queries behind any vector that reveals more than "
    "its label",
    "groups, at least": "groups (people, accounts, devices) behind any such vector",
    "largest group": "share of the largest group in the worst cell that has at least 20 certified "
    "queries; 100 %: one group alone",
    "distinct queries": "certified queries without their copies",
    "most frequent": "share of the most frequent query in the certified traffic",
    "behind a shared level": "distinct calibration queries (or groups) of all labels that share a "
    "level of the top score, in the smallest; each label has fewer of its own",
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
    "any attacker: at least this much, at the certificate's level, by bets on all three errors at "
    "once; none: G of 0 or less is not excluded",
    "worst": "the part with the least lower bound; the bounds of all parts of a kind hold at once",
    "too few": "parts with fewer than 20 queries (or groups), of which no error is certified",
}
"""Meanings of the figures of a certificate, by name."""

GOOD_GAP = 0.5
"""Certified G from which on a verdict is green."""

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
        return (
            "No error is certified: the queries themselves were not given, or too few of them "
            "share a cell."
        )
    level = f"{100 * certificate.level:g} %"
    return (
        f"The least mean squared error per pixel of any attacker is estimated at "
        f"{error.estimate:.4f} ({error.queries:,} queries; {level} interval: {error.low:.4f} to "
        f"{error.high:.4f}). Distribution-free lower bound ({level}): {error.lower_bound:.4f}."
    )


NOT_EXCLUDED = (
    "The lower bound on G does not exclude that the release reveals as much as clean scores do."
)

NO_CLEAN_ATTACK = (
    "No attack was run on clean scores, so that it is not known whether the release hides anything."
)


def yardsticks_sentence(certificate: Certificate, *, ends: bool = True) -> str | None:
    """Return what other guesses err on the same queries; None if no error is certified."""
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


IF_INDEPENDENT = ", if a group's queries are independent draws from what it asks"
"""What the bound of a group rests on, though groups are given because queries may depend."""


def parts_sentences(certificate: Certificate) -> list[str]:
    """Return the worst label, cell and group, and how many parts have too few queries."""
    level = f"{100 * certificate.level:g} %"
    lines = [
        f"Worst {kind}: {name}. Among its queries any attacker's error is at least "
        f"{error.lower_bound:.4f} (lower bound, {level} for all of them at once"
        f"{IF_INDEPENDENT if kind == 'group' else ''}; estimate {error.estimate:.4f} from "
        f"{error.queries:,} queries)."
        for kind, (name, error) in certificate.worst.items()
    ]
    return lines + [
        f"{parts.few:,} of the {kind}s have too few queries to certify an error by themselves "
        f"({100 * parts.few_share:.1f} % of queries)."
        for kind, parts in certificate.parts.items()
        if parts.few
    ]


def drift_sentences(certificate: Certificate) -> list[str]:
    """Return of which traffic a table's certificate speaks, and what shows that it has changed."""
    if not certificate.table:
        return []
    day = "" if certificate.certified_on is None else f", on {certificate.certified_on}"
    fault = fault_of_reference(certificate)
    watched = (
        "`oneway serve` tests whether the shares of cells have changed since. It cannot see a "
        "change within a cell."
        if fault is None
        else f"`oneway serve` cannot test whether it has changed since: these queries {fault[0]}."
    )
    lines = [f"It speaks of traffic like the {certificate.queries:,} certified queries{day}."]
    return [*lines, watched]


def certificate_lines(certificate: Certificate) -> list[str]:
    """Return what a certificate says, sentence by sentence."""
    lines = [
        *version_lines(certificate),
        *identification_lines(certificate),
        *composition_lines(certificate),
    ]
    lines += [bits_sentence(certificate), error_sentence(certificate)]
    for line in (yardsticks_sentence(certificate), gap_sentence(certificate)):
        if line is not None:
            lines.append(line)
    lines += [held_out_sentence(certificate.held_out), *traffic_sentences(certificate.traffic)]
    lines += drift_sentences(certificate)
    alone = alone_sentence(certificate)
    if alone is not None:
        lines.append(alone)
    lines += parts_sentences(certificate)
    if certificate.table and certificate.bits_most and (least := certificate.members_least):
        lines.append(
            "Every vector that reveals more than its label stands for at least "
            f"{least} distinct calibration queries."
        )
    if certificate.shared_least is not None:
        lines.append(
            f"Labels with few calibration queries share levels of the top score. At least "
            f"{certificate.shared_least} calibration queries (or groups) of all these labels are "
            f"behind a level, and at least {certificate.members_least} of its own label behind a "
            "vector: that is no k-anonymity within a label. The number of cells bounds what the "
            "vectors identify."
        )
    if certificate.groups_least is not None:
        lines.append(f"They come from at least {certificate.groups_least} different groups.")
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
    tone, yardsticks, answer = "mixed", certificate.yardsticks, certificate.held_out.answer
    least = None if yardsticks is None else yardsticks.least_gap
    if yardsticks is None:
        stamp = "Bits are certified, no error is"
    elif answer == "no":
        stamp = "Certified on the queries that fitted it"
    elif yardsticks.clean is None:
        stamp = "Certified, and not compared with clean scores"
    elif least is None:
        stamp = "Not proven to hide more than clean scores do"
    else:
        held_out = answer == "yes"
        tone = "good" if held_out and least >= GOOD_GAP else "mixed"
        stamp = f"Hides at least {100 * least:.0f} % of the gap from any attacker"
        stamp += "" if held_out else ", if held out"
    parts = (
        error_sentence(certificate),
        yardsticks_sentence(certificate, ends=False),
        gap_sentence(certificate),
        bits_sentence(certificate),
    )
    return tone, stamp, " ".join(part for part in parts if part is not None)


def certificate_figures(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the figures to see first, at most ten: value, and name in ``MEANINGS``."""
    error, most = certificate.error, certificate.bits_most
    yardsticks = certificate.yardsticks
    figures = identification_figures(certificate)
    if error is not None and yardsticks is not None:
        figures += [
            (f"{error.estimate:.4f}", "certified error"),
            *((f"{each.error:.4f}", name) for name, each in yardsticks_of(yardsticks)),
            (f"{error.lower_bound:.4f}", "lower bound"),
        ]
        if yardsticks.clean is not None:
            least = yardsticks.least_gap
            figures.append(("none" if least is None else f"{least:.2f}", "certified G"))
    if certificate.worst:
        kind, (part, worst) = min(
            certificate.worst.items(), key=lambda each: each[1][1].lower_bound
        )
        figures.append((f"{kind} {part}: {worst.lower_bound:.4f}", "worst"))
    return [
        *figures,
        ("no bound" if most is None else f"{most:.2f}", "bits, at most"),
        (f"{certificate.members_least}", "members, at least"),
    ]


def further_figures(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the figures that are not to see first: value, and name in ``MEANINGS``."""
    traffic, groups = certificate.traffic, certificate.groups_least
    figures = [(f"{certificate.bits_measured:.2f}", "bits, measured")]
    if groups is not None:
        figures.append((f"{groups}", "groups, at least"))
    if traffic.group_share is not None:
        figures.append((f"{100 * traffic.group_share:.1f} %", "largest group"))
    if traffic.distinct is not None and traffic.commonest is not None:
        figures.append((f"{traffic.distinct:,}", "distinct queries"))
        figures.append((f"{100 * traffic.commonest:.1f} %", "most frequent"))
    if certificate.shared_least is not None:
        figures.append((f"{certificate.shared_least}", "behind a shared level"))
    return [
        *figures,
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


def parts_table(certificate: Certificate) -> Listing:
    """Return the worst label, cell and group."""
    rows = [
        {
            "kind": kind,
            "part": name,
            **vars(error),
            "few": certificate.parts[kind].few if kind in certificate.parts else None,
        }
        for kind, (name, error) in certificate.worst.items()
    ]
    return Listing(
        "Worst parts of the traffic",
        {
            "parts": Column(itemgetter("kind")),
            "worst": Column(itemgetter("part"), help=MEANINGS["worst"]),
            "queries": Column(itemgetter("queries")),
            "error": Column(itemgetter("estimate"), ".4f", MEANINGS["certified error"]),
            "lower bound": Column(itemgetter("lower_bound"), ".4f", MEANINGS["lower bound"]),
            "too few": Column(itemgetter("few"), help=MEANINGS["too few"]),
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
    if certificate.held_out.answer != "yes":
        notices.append(held_out_sentence(certificate.held_out))
    alone = alone_sentence(certificate)
    if alone is not None:
        notices.append(alone)
    sections = [
        Section("numbers", "In numbers", [_figures(certificate_figures(certificate))]),
        *version_sections(certificate),
        *identification_sections(certificate),
        *composition_sections(certificate),
        Section("words", "In words", [Bullets(certificate_lines(certificate))]),
    ]
    if certificate.error is not None:
        blocks: list[Block] = [_chart(certificate), Grid(certificate_table(certificate))]
        sections.append(Section("errors", "The least error of any attacker", blocks))
    if certificate.worst:
        worst: list[Block] = [Bullets(parts_sentences(certificate)), Grid(parts_table(certificate))]
        sections.append(Section("worst", "Where it is least", worst))
    sections += [
        Section("more", "Traffic and codebook", [_figures(further_figures(certificate))]),
        Section("moved", "What users lose", [Grid(distortion_table(certificate))]),
        Section("rests", "Assumptions", [Bullets(ASSUMPTIONS)]),
        Section("how", "How it was certified", [Facts(_facts(certificate, command))]),
    ]
    tone, stamp, verdict = certificate_verdict(certificate)
    queries = held_out_words(certificate.held_out)
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


def _figures(figures: list[tuple[str, str]]) -> Figures:
    return Figures(
        [Figure(value, name[0].upper() + name[1:], MEANINGS[name]) for value, name in figures]
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
        levels,
        places,
        numbers=Listing(title, columns, places),
        banded=False,
    )


def _facts(certificate: Certificate, command: str) -> list[tuple[str, str]]:
    facts = [("Command", command)] if command else []
    if certificate.certified_on is not None:
        facts.append(("Day", certificate.certified_on))
    level = f"{100 * certificate.level:g} %"
    return [
        *facts,
        ("Queries", f"{certificate.queries:,}"),
        ("Level of intervals and bounds", level),
        ("Guard version", certificate.version or "none"),
        ("Queries as read, SHA-256", certificate.queries_hash or "none: no queries were given"),
        ("Scores as read, SHA-256", certificate.scores_hash or "not stated"),
        ("Source revision", certificate.commit or "an installed package"),
        ("Codebook table, SHA-256", certificate.table or "none: the release has no table"),
        ("Page drawn by", f"oneway {oneway.__version__}"),
    ]
