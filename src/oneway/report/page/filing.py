"""The part of an audit's page that a privacy officer files: one page on paper."""

from dataclasses import dataclass
from operator import attrgetter

from oneway.auditing import AuditRecord, InversionRecord
from oneway.report import audit, sentences, threats
from oneway.report.page.blocks import Facts, Grid, Prose, Section
from oneway.report.page.groups import hurt_sentence
from oneway.report.table import Column, Listing

MOST_CLASSES = 20
"""Most names of classes that are listed."""

PARAPHRASED = (
    "The documents are paraphrased: read their own words before you rely on them. This is no legal "
    "advice, and nobody who wrote these documents has judged this page."
)


@dataclass(frozen=True)
class Requirement:
    """What a document asks, beside what an audit shows of it.

    Attributes:
        document: The document, and the place in it.
        asks: What it asks, in short.
        shows: What this run shows of that.
        lacks: What this run does not show.
    """

    document: str
    asks: str
    shows: str
    lacks: str


def filing_section(record: AuditRecord) -> Section:
    """Return what was audited, and what three documents ask beside what this run shows."""
    facts = Facts(identity_facts(record))
    if record.inversion is None:
        return Section("filing", "For the file", [facts])
    return Section(
        "filing",
        "For the file",
        [
            facts,
            Grid(
                Listing(
                    "What is asked, and what this run shows of it",
                    {
                        "document": Column(attrgetter("document")),
                        "it asks": Column(attrgetter("asks")),
                        "this run shows": Column(attrgetter("shows")),
                        "this run does not show": Column(attrgetter("lacks")),
                    },
                    requirements(record, record.inversion),
                )
            ),
            Prose((PARAPHRASED,)),
        ],
    )


def identity_facts(record: AuditRecord) -> list[tuple[str, str]]:
    """Return when, by what and of what an audit was made."""
    own, inversion = getattr(record, record.threats[0]), record.inversion
    facts = [
        ("Version", f"oneway {own.environment.oneway}"),
        *sentences.provenance_facts(own.provenance),
        ("Command", record.command or "not recorded: started from Python, or an older record"),
    ]
    if inversion is not None:
        seeds = f"seed{'s' * (len(inversion.seeds) > 1)} {', '.join(map(str, inversion.seeds))}"
        unknown = "none: the guard was not given as it serves"
        facts[-1:-1] = [("Guard version", inversion.guard_version or unknown)]
        facts += [
            ("Classes", _classes(inversion)),
            ("Seeds and controls", f"{seeds}; {_controls(inversion)}"),
        ]
    if len(record.threats) > 1:
        minutes = (f"{name} {seconds / 60:.1f}" for name, seconds in record.seconds.items())
        limit = "no limit" if record.minutes is None else f"target {record.minutes:g}"
        facts.append(("Minutes", f"{', '.join(minutes)}; {limit}"))
    return facts


def _classes(record: InversionRecord) -> str:
    if record.understanding is None:
        return f"{record.classes}, without names in this record"
    names = [each.name for each in record.understanding.classes]
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return f"{len(names)}: {', '.join(names[:MOST_CLASSES])}{more}"


def _controls(record: InversionRecord) -> str:
    if not record.controls:
        return "no controls were run"
    results = [control.passed for control in record.controls.values()]
    unknown = results.count(None)
    more = f", {unknown} inconclusive" if unknown else ""
    return f"{results.count(True)} of {len(results)} controls passed{more}"


def requirements(whole: AuditRecord, record: InversionRecord) -> list[Requirement]:
    """Return what three documents ask, and what an audit shows of each.

    Args:
        whole: The record of the audit.
        record: Its part about inversion.

    Source:
        Australian Signals Directorate, Information Security Manual, ISM-2085 (November 2025).
        OWASP, AI Security Verification Standard 1.0, C11. European Data Protection Board, Opinion
        28/2024, adopted on 17 December 2024.
    """
    exact, inversion, people = _exact(record), _inversion(record), _people(record)
    if record.void:
        exact = inversion = people = "Nothing: this audit is void."
    others = threats.headlines(whole)
    inversion += "".join(
        f" {name.capitalize()}: {others[name].stamp.lower()}."
        for name in ("membership", "stealing")
        if name in others
    )
    missing = {"membership": "membership inference", "stealing": "model extraction"}
    lacks = [words for name, words in missing.items() if name not in others]
    unseen = f"{', '.join([*lacks, 'limits of rate'])}, and inversion of training data."
    return [
        Requirement(
            "Australian ISM, ISM-2085",
            "Exact confidence scores are not exposed in answers of an interface or to users.",
            exact,
            "Other ways to the exact scores: logs, other addresses, the model's own server.",
        ),
        Requirement(
            "OWASP AISVS 1.0, C11",
            "Raw outputs of a model stay behind the application, and answers reveal as little as "
            "the risk demands; model inversion is resisted.",
            inversion,
            unseen.capitalize(),
        ),
        Requirement(
            "EDPB Opinion 28/2024",
            "Before a model counts as anonymous: it is unlikely, for any person in the training "
            "data, that personal data can be extracted or obtained by queries, by all means that "
            "are reasonably likely to be used. Tests against attacks are documented.",
            people,
            "That the model is anonymous. The opinion is about people in the training data; this "
            "run attacks queries, of people who use the model.",
        ),
    ]


def _exact(record: InversionRecord) -> str:
    moved = record.utility["l1_mean"]
    if record.defense == "none":
        return "Not met: the audited release is the exact scores."
    if not record.utility["l1_max"]:
        return "Not met: the released probabilities equal the model's."
    return (
        f"Released probabilities are not the exact ones: they differ by {moved:.4f} on average (L1 "
        "distance). A change that can be undone exposes the exact scores all the same: "
        f"{_gap(record)}"
    )


def _gap(record: InversionRecord) -> str:
    gap = audit.closed_gap(record)
    if gap.value is None:
        return "no gap G was there to close."
    if gap.failed:
        return (
            f"G {gap.text()}."
            if gap.claimed is not None
            else "the attack failed, and G is not measured."
        )
    sure = f" ({gap.interval()})" if gap.bounded else ""
    return f"G = {gap.text()}{sure}."


def _inversion(record: InversionRecord) -> str:
    percent = audit.reidentified(record)
    return (
        f"Attackers who retrain on this release reconstruct queries with an error of "
        f"{record.adaptive_error:.4f} (clean scores {record.baselines.clean:.4f}, label alone "
        f"{record.baselines.label:.4f}), and re-identify {percent['released']:.1f} % of them "
        f"(clean scores {percent['clean']:.1f} %, label alone {percent['label']:.1f} %)."
    )


def _people(record: InversionRecord) -> str:
    tested = "A documented test of one attack: reconstruction of a query from its answer."
    if record.groups:
        return f"{tested} {hurt_sentence(record, record.groups)}"
    return f"{tested} Nothing is said of groups of people."
