"""The codebook as a defense: k-anonymous scores, at the price of a lookup."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_images, check_logits_to_fit, name_of
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, ScoreDefense
from oneway.defenses.codebook.certificate import Certificate, certify, rows_without_copies
from oneway.defenses.codebook.crossings import check_variants
from oneway.defenses.codebook.fit import choose_codebook, cut_calibration, merge_calibration
from oneway.defenses.codebook.fitted import FittedQueries, HeldOut, refuse_training
from oneway.defenses.codebook.options import Budget, CodebookOptions, FitSettings
from oneway.defenses.codebook.table import Codebook, Sizes
from oneway.defenses.codebook.traffic import (
    check_groups,
    check_sensitive,
    first_copies,
    query_keys,
    select_rows,
    split_rows,
)
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import narrowed
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError
from oneway.files import corrupt, read_tensors, write_tensors
from oneway.options import injected, options_of
from oneway.releases import release

KIND = "codebook"

FORMAT = 2
"""Format of the file. Raise it when its tensors, or the certificate's values, change."""

REMEDY = "Pass a file from `oneway codebook`."

MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
"""What a header that oneway did not write raises."""

Move = Callable[[Codebook, Tensor, Tensor | None], Codebook]
"""Changes a table before it is certified, given the scores and queries that it was fitted to."""


class Rows(NamedTuple):
    """Rows of traffic.

    Attributes:
        logits: ``(N, K)`` clean scores.
        queries: ``(N, ...)`` the queries that gave them.
        variants: ``(N, m, K)`` clean scores of changed copies of each query, if they are known.
    """

    logits: Tensor
    queries: Tensor
    variants: Tensor | None = None

    def of(self, rows: Tensor) -> "Rows":
        """Return a copy of the rows with these ``(n)`` int64 numbers."""
        return Rows(*(select_rows(each, rows) for each in self))  # type: ignore[arg-type]


Complete = Callable[
    [Certificate, Codebook, Rows, Tensor, Tensor | None, Tensor | None], Certificate
]
"""Completes a certificate, given the table, all rows, the numbers of the certified rows and of the
rows that it was fitted to (None if they are the same), and the groups of the certified rows (None
if they are not known). :func:`oneway.evaluation.compare_with_clean_scores` is one."""


class CodebookRelease(DefenseWithState, ScoreDefense):
    """Release one of a few vectors per label, each shared by many queries.

    Each vector is the mean of the clean confidences of the calibration queries in its cell, at
    least ``min_members`` of them: k-anonymous scores. A cell depends on the scores alone, and
    nothing but its number leaves: the best guess of a query, for an attacker who knows no more of
    it than its distribution, is the mean of the cell. See :class:`Certificate`.

    Attributes:
        certificate: What the table lets out, if it was fitted or loaded with a certificate.
        fitting_rows: ``(n)`` int64, the rows of the queries that :meth:`fit` fitted the table to,
            with all their copies; None if it was loaded.
        fitted: Digests of these queries, which :meth:`save` writes beside the table, for the
            operator alone; None if there are none.
    """

    state_type = Codebook
    training: ClassVar[type[CodebookOptions]] = CodebookOptions
    fitted_to = "calibration queries"
    is_finished = True

    state: Codebook = injected("The table.", kw_only=False)

    def __post_init__(self) -> None:
        """Begin without a certificate; see :meth:`fit` and :meth:`load`."""
        super().__post_init__()
        self.certificate: Certificate | None = None
        self.fitting_rows: Tensor | None = None
        self.fitted: FittedQueries | None = None
        self._lookups: dict[tuple[object, ...], _Lookup] = {}

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of each row's vector, in the type of ``logits``.

        They are as high as the cell's members were; below float32 they are log probabilities, since
        beside a large number such a type has no small differences.
        """
        return self._looked_up(logits, None, None)

    @torch.no_grad()
    def probabilities(
        self, logits: Tensor, *, dtype: torch.dtype = torch.float32, decimals: int | None = None
    ) -> Tensor:
        """Return what :func:`oneway.release` makes of the answer, to the bit, by one lookup.

        Saves a softmax where a fast model is served.

        Args:
            logits: ``(..., K)`` clean scores.
            dtype: See :func:`oneway.release`.
            decimals: See :func:`oneway.release`.

        Raises:
            InvalidTensorError: ``logits`` are not finite floating scores over the table's classes.
            InvalidOptionError: See :func:`oneway.release`.
        """
        self.check_scores(logits)
        return self._looked_up(logits, dtype, decimals)

    def _looked_up(self, logits: Tensor, dtype: torch.dtype | None, decimals: int | None) -> Tensor:
        key = (logits.dtype, logits.device, dtype, decimals)
        if key not in self._lookups:  # laid out for scores of this type and device
            values = self._values(logits.dtype)
            self._lookups[key] = _Lookup(self.state, values, dtype, decimals)
        rows = logits.reshape(-1, logits.shape[-1])
        return self.state.in_parts(self._lookups[key], rows).view(logits.shape)

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        queries: Tensor | None = None,
        *,
        generator: Generator,
        settings: FitSettings | None = None,
        budget: Budget | None = None,
        held_out: float = CodebookOptions.held_out,
        sensitive: Tensor | None = None,
        groups: Tensor | None = None,
        drop_copies: bool = CodebookOptions.drop_copies,
        training: Tensor | None = None,
        older: Codebook | None = None,
        variants: Tensor | None = None,
        move: Move | None = None,
        complete: Complete | None = None,
        on_share: Callable[[float], None] | None = None,
    ) -> "CodebookRelease":
        """Fit a table to the scores of unlabelled queries, and certify it on others.

        Rows are split at random with their copies, so that both parts are drawn from the traffic. A
        budget's limits are about the rows that fit, with copies. Cells are made of distinct
        queries: what a cell mixes, and how many members it has, must not depend on copies.

        Args:
            logits: ``(N, K)`` clean scores of queries like those to come.
            queries: ``(N, ...)`` in [0, 1], the queries that gave the scores, for the certified
                error, and to tell copies. None: only bits and distortion are certified, and each
                row counts as a query of its own.
            generator: On the CPU; draws which queries certify.
            settings: How to fit; None: the defaults. A ``budget`` overrides ``rate_weight``.
            budget: What users may lose, or attackers may gain; None: ``settings`` decide.
            held_out: Share of the queries that certify, in [0, 1). 0: the same queries fit and
                certify, and the certificate says so.
            sensitive: ``(N)`` int64, a numbered sensitive value of each query, such as a
                diagnosis: the certificate states how well an answer reveals it.
            groups: ``(N)`` int64, the person, account or device behind each query. A group is split
                whole, and ``min_members`` counts different groups.
            drop_copies: Count copies of a query once, also where they certify; see
                :func:`oneway.defenses.codebook.certify`.
            training: ``(M, ...)`` inputs that the model was trained on; if some of the queries are
                among them, they are refused.
            older: A table of the same model, fitted before: its cells are cut further, and never
                joined, so that answers of both reveal what those of the new one reveal. Cells with
                too few new queries keep their vector.
            variants: ``(N, m, K)`` clean scores of m changed copies of each query, such as frames
                of a video: the certificate states what several answers reveal, and
                ``variant_weight`` makes that less.
            move: Changes the table before it is certified: decoys.
            complete: Adds to the certificate what a defense cannot measure itself, where the
                queries are given.
            on_share: Called with the share that is done.

        Raises:
            InvalidTensorError: There are too few queries, or a tensor breaks the lines above.
            InvalidOptionError: No table keeps within the budget, an option is outside its range, or
                queries are training inputs.
        """
        options_of(CodebookOptions)["held_out"].refuse(held_out)
        settings = settings or FitSettings()
        _check_traffic(logits, queries, training, groups, sensitive, variants)
        groups = None if groups is None else groups.cpu()
        keys = torch.arange(len(logits)) if queries is None else query_keys(queries)
        certifying, fitting = _split(logits, queries, held_out, groups, generator, drop_copies)
        # Copies of one query are no company.
        made_of = fitting[first_copies(keys[fitting])]
        if len(certifying):
            _check_enough(len(made_of), held_out, keys, settings)
        options: dict[str, Any] = {"groups": groups, "older": older, "variants": variants}
        calibration = cut_calibration(logits, settings, queries, on_share, rows=made_of, **options)
        book = (
            merge_calibration(calibration, settings.rate_weight, settings.image_weight, once=True)
            if budget is None
            else choose_codebook(calibration, logits[fitting.to(logits.device)], budget)
        ).to(logits.device)
        if move is not None:
            made_of = calibration.rows
            book = move(book, logits[made_of.to(logits.device)], select_rows(queries, made_of))
        fitted = cls(book)
        fitted.fitting_rows = fitting
        if drop_copies:
            fitted.fitting_rows = torch.isin(keys, keys[fitting]).nonzero()[:, 0]
        chosen, others = (certifying, fitting) if len(certifying) else (fitting, None)
        of_chosen = select_rows(groups, chosen)
        fitted.certificate = certify(
            book,
            logits[chosen.to(logits.device)],
            select_rows(queries, chosen),
            held_out=HeldOut("no" if others is None else "yes"),
            groups=of_chosen,
            drop_copies=drop_copies,
            sensitive=select_rows(sensitive, chosen),
            max_l1_worst=settings.max_l1_worst,
            variants=select_rows(variants, chosen),
        )
        if complete is not None and queries is not None:
            rows, certificate = Rows(logits, queries, variants), fitted.certificate
            fitted.certificate = complete(certificate, book, rows, chosen, others, of_chosen)
        return fitted

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: Any,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit a table to the operator's queries, or, where none are kept, to auxiliary ones.

        Training data does not say who is behind a query, so that each counts as a person. With
        groups, call :meth:`fit`.

        Args:
            training_data: Its calibration images and logits.
            settings: A :class:`CodebookOptions`.
            generator: On the CPU; see :meth:`fit`.
            report: Called with the share that is done.

        Returns:
            The table, and the figures of its certificate.

        Raises:
            InvalidTensorError: There are too few calibration queries.
            InvalidOptionError: No table keeps within the budget.
        """
        move = cls.table_change(training_data, settings, generator, report)
        queries, logits, _ = training_data.calibration
        fitted = cls.fit(
            logits,
            queries,
            generator=generator,
            settings=settings,
            budget=None if settings.l1_budget is None else Budget(l1_mean=settings.l1_budget),
            held_out=settings.held_out,
            drop_copies=settings.drop_copies,
            move=move,
            on_share=report if move is None else None,
        )
        report(1.0)
        return fitted.state, fitted.figures

    @classmethod
    def table_change(
        cls,
        training_data: TrainingData,  # noqa: ARG003  for those that change tables
        settings: Any,  # noqa: ARG003
        generator: Generator,  # noqa: ARG003
        report: Callable[[float], None],  # noqa: ARG003
    ) -> Move | None:
        """Prepare a change of the table before it is certified; here there is none."""
        return None

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of table and certificate, as flat JSON values."""
        facts: dict[str, Any] = {"cells": self.state.sizes.cells}
        certificate = self.certificate
        if certificate is not None:
            for name in ("bits_most", "bits_measured", "members_least"):
                facts[name] = getattr(certificate, name)
            facts["certified_queries"] = certificate.queries
        if certificate is not None and certificate.error is not None:
            facts["certified_error"] = certificate.error.estimate
            for name in ("low", "high", "lower_bound"):
                facts[f"certified_error_{name}"] = getattr(certificate.error, name)
        return facts

    @torch.no_grad()
    def released_values(self) -> Tensor:
        """Return what each cell releases of float32 scores, ``(C, W)`` float32 probabilities.

        Of its label's explicit classes, and, unless all are explicit, of each other class.
        """
        book, logits = self.state, self._values(torch.float32)
        at_once, parts = max(1, 2**22 // book.sizes.num_classes), []
        for cells in torch.arange(book.sizes.cells, device=book.values.device).split(at_once):
            classes = book.classes[book.labels[cells]]
            rows = release(book.scatter(logits[cells], classes))
            values = [rows.gather(-1, classes)]
            if not book.is_dense:
                # Any class that is not explicit has what all others have.
                other = torch.ones_like(rows, dtype=torch.uint8).scatter(-1, classes, 0)
                values.append(rows.gather(-1, other.argmax(-1, keepdim=True)))
            parts.append(torch.cat(values, -1))
        return torch.cat(parts)

    def save(self, path: str | Path) -> None:
        """Write table and certificate as one safetensors file; it appears only when it is whole.

        The digests in ``fitted`` go into a file beside it that ends in .fitted.

        Raises:
            InvalidOptionError: ``path`` itself ends in .fitted.
        """
        path = Path(path)
        if path.suffix == ".fitted":
            raise InvalidOptionError(
                f"{path} would be overwritten by the digests of the fitted queries, which go into "
                "a file that ends in .fitted. Give the codebook another ending: .safetensors."
            )
        certificate = None if self.certificate is None else self.certificate.as_json()
        header = {
            "kind": KIND,
            "format": FORMAT,
            "architecture": self.state.architecture,
            "certificate": certificate,
        }
        write_tensors(path, self.state.state_dict(), header)
        if self.fitted is not None:
            self.fitted.save(path.with_suffix(".fitted"))
        elif self.fitting_rows is not None:  # those of an earlier fit are of another table
            path.with_suffix(".fitted").unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "CodebookRelease":
        """Read what :meth:`save` wrote.

        The checks guard against accidents: damage, a mix-up, a file of something else. They are no
        signature: anyone who can write the file can write a sound one with false claims. Only take
        files from people you trust.

        Raises:
            MissingDataError: The file is not there.
            CorruptDataError: The file is something else, its table breaks its own rules, or its
                certificate is impossible or about another table.
        """
        path = Path(path)
        state, header = read_tensors(path, KIND, REMEDY)
        try:
            if header["kind"] != KIND:
                raise CorruptDataError(
                    f"{path} holds a {header['kind']!r}, not a codebook. {REMEDY}"
                )
            if header.get("format") != FORMAT:
                raise CorruptDataError(
                    f"{path} must be a codebook of format {FORMAT}, but was written by another "
                    "version of oneway. Fit it again with `oneway codebook`."
                )
            # No memory for what a header says, before the file is known to hold it.
            _refuse_other_tensors(path, state, Sizes(**header["architecture"]))
            loaded = cls(Codebook(**header["architecture"]))
            loaded.state.load_state_dict(state)
            stored = header["certificate"]
            loaded.certificate = None if stored is None else Certificate.from_json(stored)
        except (*MALFORMED, RuntimeError) as error:
            raise corrupt(path, KIND, REMEDY, error) from error
        fault = loaded._fault()
        if fault is not None:
            raise CorruptDataError(f"{fault[0]} in {path} {fault[1]}. Fit it again.")
        return loaded

    def _fault(self) -> tuple[str, str] | None:
        """Return what is broken, and how; None if table and certificate are sound."""
        fault = self.state.fault()
        if fault is not None:
            return "the table", f"is broken: {fault}"
        if self.certificate is None:
            return None
        if self.certificate.table != self.state.digest():
            return "the certificate", "is about another table than the one beside it"
        fault = self.certificate.fault(self.state)
        return None if fault is None else ("the certificate", f"is broken: {fault}")

    def _values(self, dtype: torch.dtype) -> Tensor:
        """Return ``(C, W)`` logits of each cell, the label strictly on top in this type."""
        logs = self.state.values.log()
        if torch.finfo(dtype).bits >= 32:
            logs = logs + self.state.offsets.unsqueeze(-1)
        first = torch.zeros(len(logs), dtype=torch.int64, device=logs.device)
        return lift_label(narrowed(logs, dtype), first, 0)


class _Lookup:
    """A table laid out for release: few steps per batch."""

    def __init__(
        self, book: Codebook, values: Tensor, dtype: torch.dtype | None, decimals: int | None
    ) -> None:
        """Lay out ``values``, ``(C, W)`` logits; as probabilities of ``dtype`` if it is given."""
        self.book, self.dtype, self.decimals = book, dtype, decimals
        self.edges = book.search_edges()
        assignment = book.assignment.flatten()
        self.values, self.rows = values[assignment], None
        if book.is_dense:
            self.rows = self._released(book.expand(values, assignment))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return ``(N, K)`` answers to ``(N, K)`` logits."""
        boxes = self.book.boxes_of(logits, self.edges)
        if self.rows is not None:
            return self.rows.index_select(0, boxes)
        classes = self.book.classes.index_select(0, boxes // self.book.sizes.boxes)
        return self._released(self.book.scatter(self.values.index_select(0, boxes), classes))

    def _released(self, logits: Tensor) -> Tensor:
        if self.dtype is None:
            return logits
        return release(logits, dtype=self.dtype, decimals=self.decimals)


def _check_enough(left: int, held_out: float, keys: Tensor, settings: FitSettings) -> None:
    """Refuse fewer distinct queries to fit to than a cell has members."""
    if left < settings.min_members:
        raise InvalidTensorError(
            f"held_out {held_out} leaves {left} of {len(keys.unique())} distinct "
            f"queries to fit to, but the smallest cell has {settings.min_members} members. "
            "Pass more calibration queries, or lower held_out or min_members."
        )


def _check_traffic(
    logits: Tensor,
    queries: Tensor | None,
    training: Tensor | None,
    groups: Tensor | None,
    sensitive: Tensor | None,
    variants: Tensor | None,
) -> None:
    """Refuse what :meth:`CodebookRelease.fit` cannot fit to."""
    check_logits_to_fit(logits, "calibration logits")
    if logits.ndim != 2:
        raise InvalidTensorError(
            f"calibration logits must have shape (N, K), but got {tuple(logits.shape)}."
        )
    if queries is not None:
        check_images(queries, rows=len(logits))
    if training is not None:
        refuse_training(queries, training)
    if groups is not None:
        check_groups(groups, len(logits))
    if sensitive is not None:
        check_sensitive(sensitive, len(logits))
    if variants is not None:
        check_variants(variants, logits)


def _split(
    logits: Tensor,
    queries: Tensor | None,
    held_out: float,
    groups: Tensor | None,
    generator: Generator,
    drop_copies: bool,
) -> list[Tensor]:
    """Return the int64 numbers of the rows that certify, and of those that fit."""
    rows = torch.arange(len(logits))
    if drop_copies:
        rows = rows_without_copies(queries, len(logits))
    parts = split_rows(len(rows), [held_out], generator, select_rows(groups, rows))
    certifying, fitting = (rows[part] for part in parts)
    if held_out and not len(certifying):
        raise InvalidOptionError(
            f"held_out must leave queries, or groups, that certify, but {held_out} of "
            f"{len(rows) if groups is None else len(groups.unique())} leaves none. Pass more, "
            "or hold out a larger share."
        )
    return [certifying, fitting]


def _refuse_other_tensors(path: Path, state: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Refuse tensors that are not those of the sizes that a header states.

    Raises:
        CorruptDataError: A name, type or shape differs.
    """
    stored = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    for name in sorted(sizes.tensors.keys() | stored.keys()):
        got, expected = (
            f"{name_of(tensors[name][0])} of shape {tensors[name][1]}"
            if name in tensors
            else "none"
            for tensors in (stored, sizes.tensors)
        )
        if got != expected:
            raise CorruptDataError(
                f"{path} is not a codebook that oneway wrote: by its header the tensor {name} is "
                f"{expected}, but there is {got}. {REMEDY}"
            )
