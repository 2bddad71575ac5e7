"""Fit, choose and certify releases that many queries share, from a model or from its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oneway.adapters import load_guard
from oneway.auditing import MembershipSettings
from oneway.contracts import Defense
from oneway.data import ProgressCallback, no_progress
from oneway.defenses import (
    ReleaseCandidate,
    SecretKey,
    certify_candidate,
    measure_candidates,
    pareto_optimal,
)
from oneway.defenses import choose_candidate as choose_within
from oneway.defenses.candidate_releases import MIN_MEMBERS
from oneway.defenses.codebook import (
    NOT_CHECKED,
    Budget,
    Certificate,
    Codebook,
    CodebookRelease,
    FitSettings,
    FittedQueries,
    HeldOut,
    certify_together,
    plant_decoys,
)
from oneway.defenses.codebook import certify as certify_table
from oneway.defenses.codebook.fitted import refuse_training
from oneway.defenses.codebook.release import Move, Rows
from oneway.errors import InvalidOptionError
from oneway.evaluation import compare_with_clean_scores
from oneway.evaluation.records import source_commit
from oneway.evaluation.store import fingerprint
from oneway.interface.audit_source import CACHE, AuditSource
from oneway.interface.data import AS_IT_IS, Reading, read_rows
from oneway.interface.models import read_groups, read_scores, read_sensitive
from oneway.interface.threats import (
    CHEAP_ATTACKS,
    REFERENCES,
    Goal,
    check_goal,
    judged_for_members,
)
from oneway.options import check_keywords
from oneway.releases import Outputs

Guard = CodebookRelease | str | Path
"""A fitted codebook, or its file."""

ENOUGH = 0.9
"""Share of what the best candidate hides that a release without a budget hides."""


def fit_codebook(
    model_or_scores: Any,
    queries: Any = None,
    *,
    max_l1: float | None = None,
    outputs: Outputs | None = None,
    budget: Budget | None = None,
    sensitive: Any = None,
    groups: Any = None,
    variants: Any = None,
    repeats: int | None = None,
    training: Any = None,
    older: Guard | None = None,
    held_out: float = 0.2,
    drop_copies: bool = False,
    inverters: Sequence[nn.Module] = (),
    decoy_l1: float = 0.02,
    key: SecretKey | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    reading: Reading = AS_IT_IS,
    report: ProgressCallback = no_progress,
    model_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> CodebookRelease:
    """Fit a codebook to a model's scores of unlabelled queries, and certify it on others of them.

    For example::

        guard = oneway.fit_codebook(model, images, outputs="logits", max_l1=0.1)
        guard.save("guard.safetensors")

    Args:
        model_or_scores: A model, or ``(N, K)`` scores: see
            :func:`oneway.interface.models.read_scores`.
        queries: Queries like those to come, which the model was not trained on: see
            :func:`oneway.interface.data.read_rows`. With scores they may be missing; then no error
            is certified.
        max_l1: Budget: mean L1 distance of probabilities that users may lose, in [0, 2].
        outputs: What the scores are, ``"logits"`` or ``"confidences"``, where neither file nor
            model says so.
        budget: Other limits instead of ``max_l1``. Without any, ``settings`` decide.
        sensitive: A sensitive value of each query, or the file of them: see
            :func:`oneway.interface.models.read_sensitive`. The certificate states how well
            an answer reveals it.
        groups: The person, account or device behind each query, or the file of them: see
            :func:`oneway.interface.models.read_groups`.
        variants: ``(N, m, K)`` logits of changed copies, an array or a tensor: see
            :meth:`oneway.CodebookRelease.fit`.
        repeats: Answers to each query, its own among them: a model is asked about changed copies,
            and the certificate states what several answers reveal.
        training: What the model was trained on, as ``queries``: refused among them.
        older: A codebook in use, whose cells are cut further, and never joined.
        held_out: Share of the queries that certify, and do not fit.
        drop_copies: Count copies of a query once.
        inverters: Surrogate inverters that decoys are planted against.
        decoy_l1: Largest move of a vector by a decoy, L1 of probabilities.
        key: Key of the digests of fitted queries. None: a salt is kept beside them.
        seed: Seed of the split.
        device: Where the table is fitted and a model is asked; None: the CPU, but a module that is
            given as an object stays where it lies.
        reading: How files are read.
        report: Receives the progress.
        model_options: Options of the kind of model.
        **settings: Those of :class:`oneway.defenses.codebook.FitSettings`, such as
            ``min_members=20``.

    Returns:
        The guard, with its ``certificate``. ``save`` writes it, and digests of the queries beside
        it, in a file that the operator keeps.

    Raises:
        OnewayError: Something cannot be used, or no codebook keeps within the budget.
    """
    limits = _budget_of(max_l1, budget)
    fit_settings = _settings_of(settings)
    where = device or torch.device("cpu")
    scores = read_scores(
        model_or_scores,
        queries,
        outputs=outputs,
        reading=reading,
        device=device,
        report=report,
        **(model_options or {}),
    )
    logits, shown = scores.logits, scores.queries
    if training is not None:  # here, since tables are compared before they are encoded
        trained = read_rows(training, "the training inputs", reading, report=report)
        refuse_training(scores.compared, trained.compared)
    changed = scores.variants(variants, repeats)
    people = read_groups(groups, len(logits))
    release = CodebookRelease.fit(
        logits.to(where),
        None if shown is None else shown.to(where),
        generator=torch.Generator().manual_seed(seed),
        settings=fit_settings,
        budget=limits,
        held_out=held_out,
        sensitive=read_sensitive(sensitive, len(logits)),
        groups=people,
        drop_copies=drop_copies,
        variants=None if changed is None else changed.to(where),
        older=None if older is None else _opened(older).state,
        move=_decoys(inverters, decoy_l1, shown) if inverters else None,
        complete=compare_with_clean_scores,
        on_share=lambda share: report("fit the codebook", share),
    )
    assert release.certificate is not None  # noqa: S101  narrows the type; fit gives one
    release.certificate = with_provenance(release.certificate, logits, shown)
    if scores.compared is not None:
        release.fitted = _digests_of(release, scores.compared, people, key)
    return release


def _settings_of(settings: Mapping[str, Any]) -> FitSettings:
    """Return the settings of a fit; refuse names that are none of them."""
    check_keywords(fit_codebook, settings, [field.name for field in fields(FitSettings)])
    return FitSettings(**settings)


def _budget_of(max_l1: float | None, budget: Budget | None) -> Budget | None:
    """Return the budget of a mean L1 distance, or the one that is given."""
    if max_l1 is None:
        return budget
    if budget is not None:
        raise InvalidOptionError("give max_l1, or a budget with l1_mean, not both.")
    return Budget(l1_mean=max_l1)


def _digests_of(
    release: CodebookRelease, queries: Tensor, groups: Tensor | None, key: SecretKey | None
) -> FittedQueries:
    """Return digests of the queries that a codebook was fitted to just now."""
    rows = release.fitting_rows
    assert rows is not None  # noqa: S101  narrows the type; fit sets them
    own = None if groups is None else groups[rows]
    return FittedQueries.of(release.state.digest(), queries[rows], own, key=key)


def _decoys(inverters: Sequence[nn.Module], l1_budget: float, queries: Tensor | None) -> Move:
    """Return what plants decoys against inverters."""
    if queries is None:
        raise InvalidOptionError("decoys need the queries, too. Pass --queries (queries=...).")

    def move(book: Codebook, scores: Tensor, queries: Tensor | None) -> Codebook:
        assert queries is not None  # noqa: S101  narrows the type; the caller refuses None
        return plant_decoys(book, scores, queries, inverters, l1_budget=l1_budget)

    return move


def certify(
    guard: Guard,
    model_or_scores: Any,
    queries: Any = None,
    *,
    outputs: Outputs | None = None,
    others: Sequence[Guard] = (),
    groups: Any = None,
    sensitive: Any = None,
    variants: Any = None,
    repeats: int | None = None,
    key: SecretKey | None = None,
    reading: Reading = AS_IT_IS,
    report: ProgressCallback = no_progress,
    model_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Certificate:
    """Certify what a codebook lets out, on queries that it was not fitted to.

    Args:
        guard: The codebook. Of a file, the digests beside it say whether these queries were
            fitted; of an object, those of its own fit.
        model_or_scores: See :func:`fit_codebook`.
        queries: See there.
        outputs: See there.
        others: Further versions, whose answers to the same queries an attacker has.
        groups: See :func:`fit_codebook`.
        sensitive: See :func:`fit_codebook`.
        variants: See :func:`fit_codebook`.
        repeats: See :func:`fit_codebook`.
        key: Key of the digests, if one made them.
        reading: How files are read.
        report: Receives the progress.
        model_options: Options of the kind of model.
        **options: Those of :func:`oneway.defenses.codebook.certify`.

    Raises:
        OnewayError: These queries cannot certify this codebook.
    """
    check_keywords(certify, options, ("drop_copies", "level", "max_l1_worst"))
    scores = read_scores(
        model_or_scores,
        queries,
        outputs=outputs,
        reading=reading,
        report=report,
        **(model_options or {}),
    )
    logits, shown = scores.logits, scores.queries
    changed = scores.variants(variants, repeats)
    people = read_groups(groups, len(logits))
    options |= {"variants": changed, "sensitive": read_sensitive(sensitive, len(logits))}
    tables = [_opened(each) for each in (guard, *others)]
    judged = [
        _held_out(given, table, scores.compared, people, key)
        for given, table in zip((guard, *others), tables, strict=True)
    ]
    # One version that was fitted to these queries spoils the figures of all.
    options["held_out"] = min(
        judged, key=lambda each: ("no", "not checked", "yes").index(each.answer)
    )
    worst = tables[0].certificate and tables[0].certificate.worst_case
    if options.get("max_l1_worst") is None and worst:
        options["max_l1_worst"] = worst.limit
    table: Any = tables[0].state
    if others:
        states = [each.state for each in tables]
        certificate, table = certify_together(states, logits, shown, groups=people, **options)
    else:
        certificate = certify_table(table, logits, shown, groups=people, **options)
    if shown is not None:
        certified = Rows(logits, shown, changed)
        certificate = compare_with_clean_scores(certificate, table, certified, groups=people)
    return with_provenance(certificate, logits, shown)


def _opened(guard: Guard) -> CodebookRelease:
    return guard if isinstance(guard, CodebookRelease) else load_guard(guard)


def _held_out(
    guard: Guard,
    release: CodebookRelease,
    queries: Tensor | None,
    groups: Tensor | None,
    key: SecretKey | None,
) -> HeldOut:
    """Return whether queries were fitted, by the digests of a fit, if there are any.

    Raises:
        InvalidOptionError: The digests are of another codebook, or need another key.
    """
    fitted = release.fitted
    if queries is None:
        return NOT_CHECKED
    if not isinstance(guard, CodebookRelease):
        path = Path(guard).with_suffix(".fitted")
        if not path.is_file():
            return NOT_CHECKED
        fitted = FittedQueries.load(path, key)
        if fitted.table != release.state.digest():
            raise InvalidOptionError(
                f"{path} must hold digests of the queries that {guard} was fitted to, but is about "
                "another codebook. Put the right file there, or move this one away."
            )
    return NOT_CHECKED if fitted is None else fitted.judge(queries, groups)


def with_provenance(
    certificate: Certificate, logits: Tensor, queries: Tensor | None
) -> Certificate:
    """Return a certificate that states its day, its data and the source that made it.

    Args:
        certificate: Made just now.
        logits: ``(N, K)`` clean scores as they were read, before any are set aside or dropped.
        queries: ``(N, ...)`` the queries that gave them; None: none were given.
    """
    return replace(
        certificate,
        certified_on=datetime.now(UTC).date().isoformat(),
        queries_hash=None if queries is None else fingerprint(queries),
        scores_hash=fingerprint(logits),
        commit=source_commit(),
    )


@dataclass(frozen=True)
class Choice:
    """The release that was chosen among candidates.

    Attributes:
        guard: The release: a codebook, fitted to all queries but those that certify, or a defense
            without a table.
        candidate: It, with its figures on the queries that judged it.
        certificate: Its certificate, on queries that neither fitted nor chose it.
        frontier: The candidates that no other beats in both distortion and what they hide.
        candidates: All candidates.
    """

    guard: Defense
    candidate: ReleaseCandidate
    certificate: Certificate = field(repr=False)  # of thousands of characters
    frontier: Sequence[ReleaseCandidate] = field(repr=False)
    candidates: Sequence[ReleaseCandidate] = field(repr=False)

    @property
    def bounded(self) -> ReleaseCandidate | None:
        """The candidate to take where identification matters.

        It is the codebook with the largest certified error among those that move probabilities no
        further than the chosen release; None if no codebook does.
        """
        within = [
            each
            for each in self.candidates
            if each.cells is not None and each.l1_mean <= self.candidate.l1_mean
        ]
        return max(within, key=lambda each: each.certified, default=None)


def choose(
    model_or_scores: Any,
    queries: Any = None,
    *,
    max_l1: float | None = None,
    outputs: Outputs | None = None,
    goal: Goal = "inversion",
    members: Any = None,
    non_members: Any = None,
    attacker_data: Any = None,
    references: int | None = None,
    cache: str | Path = CACHE,
    min_members: int | Sequence[int] = MIN_MEMBERS,
    max_cells: int | None = None,
    groups: Any = None,
    drop_copies: bool = False,
    seed: int = 0,
    reading: Reading = AS_IT_IS,
    report: ProgressCallback = no_progress,
    model_options: Mapping[str, Any] | None = None,
) -> Choice:
    """Find the release that hides most within a budget: rounding, top entries or a codebook.

    Two fifths of the queries fit each candidate, and two fifths judge it by the least error of any
    attacker. The last fifth certifies the best one. Where the goal is to hide members, a few
    attackers with reference models judge it on members and non-members. The best of many
    candidates looks better there than it is: audit the chosen one with other rows.

    Args:
        model_or_scores: See :func:`fit_codebook`.
        queries: See there; needed.
        max_l1: Mean L1 distance of probabilities that users may lose. None: the cheapest candidate
            is chosen that hides nine tenths of what the best one hides.
        outputs: See :func:`fit_codebook`.
        goal: What is hidden: queries (``"inversion"``), which rows the model was trained on
            (``"membership"``), or both (``"all"``): the smaller share of the two.
        members: Rows that the model was trained on, with classes: see :func:`oneway.audit`. For
            the goals membership and all, as the next two are.
        non_members: Rows that it was not trained on, likewise.
        attacker_data: The attacker's own rows, likewise.
        references: Reference models of the attacker, even, for the same goals; None: 4.
        cache: Folder of reference models.
        min_members: Least members of candidate codebooks: one number, or several.
        max_cells: Largest number of cells of a codebook; releases without a table are left out.
        groups: See :func:`fit_codebook`.
        drop_copies: Count copies of a query once.
        seed: Seed of the split.
        reading: How files are read.
        report: Receives the progress.
        model_options: Options of the kind of model.

    Raises:
        OnewayError: Something cannot be used, or no candidate keeps within the budget.
    """
    data = {"--members": members, "--non-members": non_members}
    check_goal(goal, {**data, "--attacker-data": attacker_data}, references)
    scores = read_scores(
        model_or_scores,
        queries,
        outputs=outputs,
        reading=reading,
        report=report,
        **(model_options or {}),
    )
    logits, shown = scores.logits, scores.queries
    if shown is None:
        raise InvalidOptionError("choosing needs the queries, too. Pass --queries (queries=...).")
    number = REFERENCES if references is None else references
    size = MembershipSettings(references=number, copies=0, seed=seed, attacks=CHEAP_ATTACKS)
    opened = None
    if goal != "inversion":
        _check_model(goal, scores.target)
        model = model_or_scores, {"outputs": outputs, **(model_options or {})}
        rows: dict[str, Any] = {"members": members, "non_members": non_members, "reading": reading}
        source = AuditSource(model, attacker_data, **rows)
        opened = source.open_members(report=report, apart=scores.compared)
    people = read_groups(groups, len(logits))
    traffic: dict[str, Any] = {"drop_copies": drop_copies, "groups": people}
    candidates = measure_candidates(
        logits,
        shown,
        generator=torch.Generator().manual_seed(seed),
        min_members=(min_members,) if isinstance(min_members, int) else tuple(min_members),
        max_cells=max_cells,
        **traffic,
        on_share=lambda share: report("fit and judge the candidates", share),
    )
    if opened is not None:
        candidates = judged_for_members(
            goal, candidates, opened, size, cache=Path(cache), report=report
        )
    frontier = pareto_optimal(candidates)
    chosen = _cheapest(frontier) if max_l1 is None else choose_within(candidates, max_l1)
    # The same seed as above: the rows that certify neither fitted nor judged a candidate.
    guard, certificate = _certified(chosen, logits, shown, seed, traffic)
    return Choice(guard, chosen, certificate, frontier, candidates)


def _certified(
    chosen: ReleaseCandidate, logits: Tensor, queries: Tensor, seed: int, traffic: dict[str, Any]
) -> tuple[Defense, Certificate]:
    """Return the release of a candidate, and its certificate."""
    generator = torch.Generator().manual_seed(seed)
    guard, certificate = certify_candidate(chosen, logits, queries, generator=generator, **traffic)
    certificate = with_provenance(certificate, logits, queries)
    if isinstance(guard, CodebookRelease):
        guard.certificate = certificate
    return guard, certificate


def _check_model(goal: Goal, target: object | None) -> None:
    if target is None:
        raise InvalidOptionError(
            f"the goal {goal!r} needs the model itself, to ask it about members, but got its "
            "scores. Pass the model."
        )


def _cheapest(frontier: Sequence[ReleaseCandidate]) -> ReleaseCandidate:
    """Return the candidate that changes least of those that hide enough."""
    return next(each for each in frontier if each.hidden >= enough(frontier))


def enough(frontier: Sequence[ReleaseCandidate]) -> float:
    """Return what a release without a budget hides at least.

    Where the best one hides nothing, it is what the best one hides.
    """
    best = max(each.hidden for each in frontier)
    return min(best, ENOUGH * best)
