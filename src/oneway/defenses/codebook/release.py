"""The codebook as a defense: k-anonymous scores, at the price of a lookup."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_images, check_logits, check_weight, name_of
from oneway.contracts import TrainingData
from oneway.defenses.codebook.certificate import (
    Certificate,
    CertifiedError,
    certify,
    figures_of_table,
    table_hash,
)
from oneway.defenses.codebook.choose import Budget, choose_codebook
from oneway.defenses.codebook.fit import (
    LISTED,
    FitSettings,
    cut_calibration,
    merge_calibration,
)
from oneway.defenses.codebook.table import MOST_OFFSET, Codebook, first_box, seen_through
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import narrowed
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError
from oneway.files import corrupt, read_tensors, write_tensors
from oneway.releases import release

KIND = "codebook"

HELD_OUT = 0.2
"""Share of the calibration queries that certify, and are not fitted to."""


class CodebookRelease:
    """Release one of a few vectors per label: many scores, one answer, and no way back.

    Each vector is the mean of the clean confidences of the calibration queries in its cell, at
    least ``min_members`` of them: k-anonymous scores. What is in a cell depends on the scores
    alone, and nothing but its number leaves, so that no attacker can do better than guess the
    mean of the cell, whatever they know and train: see
    :class:`oneway.defenses.codebook.certificate.Certificate`.

    Attributes:
        network: The table.
        certificate: What was found about it, where it was fitted or loaded with one.
    """

    state_type = Codebook
    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, network: nn.Module) -> None:
        """Use a :class:`Codebook` that was fitted; see :meth:`fit`, :meth:`train`, :meth:`load`."""
        self.network = cast("Codebook", network.eval())
        self.certificate: Certificate | None = None
        self._lookups: dict[tuple[object, ...], _Lookup] = {}

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits of each row's vector; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum. They are as
        high as the cell's members were; below float32 they are log probabilities, since beside a
        large number such a type cannot say small differences.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over the table's classes.
        """
        self.network.check(logits)
        rows = logits.reshape(-1, logits.shape[-1])
        return self._lookup(logits, None, None)(rows).view(logits.shape)

    @torch.no_grad()
    def probabilities(
        self, logits: Tensor, *, dtype: torch.dtype = torch.float32, decimals: int | None = None
    ) -> Tensor:
        """Return what :func:`oneway.release` makes of the answer, to the bit, by one lookup.

        For whoever serves a fast model: no softmax is taken of what was looked up.

        Args:
            logits: ``(..., K)`` clean scores.
            dtype: See :func:`oneway.release`.
            decimals: See there.

        Raises:
            InvalidTensorError: See :meth:`__call__`.
            InvalidOptionError: See :func:`oneway.release`.
        """
        self.network.check(logits)
        rows = logits.reshape(-1, logits.shape[-1])
        return self._lookup(logits, dtype, decimals)(rows).view(logits.shape)

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        queries: Tensor | None = None,
        *,
        generator: Generator,
        settings: FitSettings | None = None,
        budget: Budget | None = None,
        held_out: float = HELD_OUT,
        move: Callable[[Codebook, Tensor, Tensor | None], Codebook] | None = None,
        on_share: Callable[[float], None] | None = None,
    ) -> "CodebookRelease":
        """Fit a table to the scores of unlabelled queries, and certify it on others.

        Args:
            logits: ``(N, K)`` clean scores of queries like those that will be asked.
            queries: ``(N, ...)`` in [0, 1], what was asked: for the certified error. Of copies
                of one query one counts. None: the certificate tells bits and distortion alone,
                and copies count.
            generator: On the CPU; draws who certifies, and the bootstrap.
            settings: How; None: the defaults. With a ``budget`` its ``rate_weight`` is found.
            budget: What users may lose, or attackers may gain; None: settings decide.
            held_out: Share of the queries that certify. 0: the same ones fit and certify, and
                the certificate says so.
            move: Changes the table before it is certified, given the scores and queries that it
                was fitted to: decoys.
            on_share: Called with the share that is done.

        Raises:
            InvalidTensorError: There are too few queries, or they are not what is said above.
            InvalidOptionError: No table keeps within the budget, or an option is outside its
                range.
        """
        check_share("held_out", held_out)
        check_logits(logits, "calibration logits")
        if queries is not None:
            check_images(queries, rows=len(logits))
        settings = settings or FitSettings()
        if queries is not None:
            # Copies of one query are no company, and must not certify what they fitted.
            distinct = first_copies(queries)
            logits, queries = logits[distinct], queries[distinct]
        order = torch.randperm(len(logits), generator=generator).to(logits.device)
        apart = round(held_out * len(logits))
        certifying, fitting = order[:apart], order[apart:]
        if apart and logits.ndim == 2 and len(fitting) < settings.min_members:
            raise InvalidTensorError(
                f"held_out {held_out} leaves {len(fitting)} of {len(logits)} queries to fit to, "
                f"but the smallest cell has {settings.min_members} members. Pass more calibration "
                "queries, or lower held_out or min_members."
            )
        own = None if queries is None else queries[fitting]
        calibration = cut_calibration(logits[fitting], settings, own, on_share)
        if budget is None:
            book = merge_calibration(calibration, settings.rate_weight, settings.image_weight)
        else:
            book = choose_codebook(calibration, logits[fitting], budget)
        book = book.to(logits.device)
        if move is not None:
            book = move(book, logits[fitting], own)
        fitted = cls(book)
        rows = certifying if apart else fitting
        fitted.certificate = certify(
            book,
            logits[rows],
            None if queries is None else queries[rows],
            independent=apart > 0,
            generator=generator,
        )
        return fitted

    @classmethod
    def check_training(cls, **options: Any) -> None:
        """Refuse options of :meth:`train` that are outside their range.

        Raises:
            InvalidOptionError: One is.
        """
        fit_options(**options)

    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        on_epoch: Callable[[float], None] | None = None,
        min_members: int = 20,
        rate_weight: float = 0.01,
        image_weight: float = 0.0,
        listed: int = LISTED,
        center: Literal["mean", "median"] = "mean",
        l1_budget: float | None = None,
        held_out: float = HELD_OUT,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit a table to the operator's queries, or, where none are kept, to auxiliary ones.

        Args:
            training_data: Its calibration images and logits.
            generator: On the CPU; see :meth:`fit`.
            on_epoch: Called with the share that is done.
            min_members: See :class:`FitSettings`.
            rate_weight: See there; not used with ``l1_budget``.
            image_weight: See there.
            listed: See there.
            center: See there.
            l1_budget: Mean L1 distance of probabilities that users may lose: the table with the
                best certified error within it is chosen.
            held_out: See :meth:`fit`.

        Returns:
            The table, and the figures of its certificate.

        Raises:
            InvalidTensorError: There are too few calibration queries.
            InvalidOptionError: No table keeps within the budget.
        """
        images, logits = training_data.calibration
        asked = fit_options(
            min_members=min_members,
            rate_weight=rate_weight,
            image_weight=image_weight,
            listed=listed,
            center=center,
            l1_budget=l1_budget,
            held_out=held_out,
        )
        fitted = cls.fit(logits, images, generator=generator, on_share=on_epoch, **asked)
        return fitted.network, fitted.figures

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the certificate, as flat JSON values; cells alone if there is none."""
        told = self.certificate
        facts: dict[str, Any] = {"cells": self.network.sizes.cells}
        if told is None:
            return facts
        facts |= {
            "bits_most": told.bits_most,
            "bits_measured": told.bits_measured,
            "members_least": told.members_least,
            "certified_queries": told.queries,
        }
        if told.error is not None:
            facts |= {
                "certified_error": told.error.estimate,
                "certified_error_low": told.error.low,
                "certified_error_high": told.error.high,
                "certified_error_lower_bound": told.error.lower_bound,
            }
        return facts

    @torch.no_grad()
    def released_values(self) -> Tensor:
        """Return what each cell releases of float32 scores, ``(C, W)`` float32 probabilities.

        Of its label's listed classes, and, unless all are listed, of each other class.
        """
        book = self.network
        at_once, parts = max(1, 2**22 // book.sizes.num_classes), []
        for cells in torch.arange(book.sizes.cells, device=book.values.device).split(at_once):
            classes = book.classes[book.labels[cells]]
            values = self._values(torch.float32)[cells]
            rows = release(book.laid_out(values, classes))
            told = [rows.gather(-1, classes)]
            if not book.is_dense:
                # Any class that is not listed has what all others have.
                free = torch.ones_like(rows, dtype=torch.uint8).scatter(-1, classes, 0)
                told.append(rows.gather(-1, free.argmax(-1, keepdim=True)))
            parts.append(torch.cat(told, -1))
        return torch.cat(parts)

    def save(self, path: Path) -> None:
        """Write table and certificate as one safetensors file; it appears only when it is whole."""
        header = {
            "kind": KIND,
            "architecture": self.network.architecture,
            "facts": {
                "certificate": None if self.certificate is None else self.certificate.as_json()
            },
        }
        write_tensors(path, self.network.state_dict(), header)

    @classmethod
    def load(cls, path: Path) -> "CodebookRelease":
        """Read what :meth:`save` wrote.

        What is checked guards against accidents: damage, a mix-up, a file of something else. It is
        no signature: whoever can write the file can write one that is sound and lies. Take files
        from those you trust alone.

        Raises:
            MissingDataError: The file is not there.
            CorruptDataError: It is something else, its table breaks its own rules, its
                certificate does, or is about another table.
        """
        state, header = read_tensors(path, KIND, "Fit one with `oneway codebook`.")
        try:
            if header["kind"] != KIND:
                raise CorruptDataError(
                    f"{path} holds a {header['kind']!r}, not a codebook. Fit one with "
                    "`oneway codebook`."
                )
            with torch.device("meta"):  # no memory for what a header says
                described = Codebook(**header["architecture"]).state_dict()
            _refuse_other_tensors(path, state, described)
            book = Codebook(**header["architecture"])
            book.load_state_dict(state)
            told = header["facts"]["certificate"]
            certificate = None if told is None else Certificate.from_json(told)
        except (
            AttributeError,
            KeyError,
            OverflowError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise corrupt(path, KIND, error) from error
        broken = fault_of(book)
        if broken:
            raise CorruptDataError(f"the table in {path} is broken: {broken}. Fit it again.")
        if certificate is not None and certificate.table != table_hash(book):
            raise CorruptDataError(
                f"the certificate in {path} is about another table than the one beside it: one of "
                "them was changed. Fit it again with `oneway codebook`."
            )
        untrue = (
            None if certificate is None else next(_faults_of_certificate(certificate, book), "")
        )
        if untrue:
            raise CorruptDataError(
                f"the certificate in {path} is broken: {untrue}. Fit it again with "
                "`oneway codebook`."
            )
        loaded = cls(book)
        loaded.certificate = certificate
        return loaded

    def _lookup(self, logits: Tensor, dtype: torch.dtype | None, decimals: int | None) -> "_Lookup":
        """Return the table for scores of this type and device, made when first asked for."""
        key = (logits.dtype, logits.device, dtype, decimals)
        if key not in self._lookups:
            values = self._values(logits.dtype)
            self._lookups[key] = _Lookup(self.network, values, dtype, decimals)
        return self._lookups[key]

    def _values(self, dtype: torch.dtype) -> Tensor:
        """Return ``(C, W)`` logits of each cell, the label strictly on top in this type."""
        logs = self.network.values.log()
        if torch.finfo(dtype).bits >= 32:
            logs = logs + self.network.offsets.unsqueeze(-1)
        first = torch.zeros(len(logs), dtype=torch.int64, device=logs.device)
        return lift_label(narrowed(logs, dtype), first, 0)


class _Lookup:
    """A table laid out for release: as few steps as there can be for each batch."""

    def __init__(
        self,
        book: Codebook,
        values: Tensor,
        dtype: torch.dtype | None,
        decimals: int | None,
    ) -> None:
        """Lay out ``values``, ``(C, W)`` logits; as probabilities of ``dtype`` if it is given."""
        self.book, self.boxes = book, book.sizes.boxes
        self.dtype, self.decimals = dtype, decimals
        self.at_once = book.rows_at_once
        owner = book.owner.flatten()
        self.values = values[owner]
        self.edges, self.rows = book.edges, None
        if book.is_dense:
            self.edges = book.edges_by_class()
            self.rows = self._told(book.spread(values, owner))

    def __call__(self, logits: Tensor) -> Tensor:
        if len(logits) <= self.at_once:
            return self._answers(logits)
        return torch.cat([self._answers(rows) for rows in logits.split(self.at_once)])

    def _answers(self, logits: Tensor) -> Tensor:
        labels = logits.argmax(-1)
        rows = logits.softmax(-1, dtype=torch.float64)
        if self.rows is None:
            classes = self.book.classes.index_select(0, labels)
            rows = seen_through(rows, classes, dense=False)
        box = labels * self.boxes + first_box(rows, self.edges.index_select(0, labels))
        if self.rows is not None:
            return self.rows.index_select(0, box)
        return self._told(self.book.laid_out(self.values.index_select(0, box), classes))

    def _told(self, logits: Tensor) -> Tensor:
        if self.dtype is None:
            return logits
        return release(logits, dtype=self.dtype, decimals=self.decimals)


def fit_options(
    *, l1_budget: float | None = None, held_out: float = HELD_OUT, **settings: Any
) -> dict[str, Any]:
    """Return what :meth:`CodebookRelease.fit` takes, of what is told to :meth:`train`.

    Raises:
        InvalidOptionError: An option is outside its range.
    """
    check_share("held_out", held_out)
    budget = None if l1_budget is None else Budget(l1_mean=l1_budget)
    return {"settings": FitSettings(**settings), "budget": budget, "held_out": held_out}


def check_share(name: str, value: float) -> None:
    """Refuse a share of the queries that leaves none.

    Raises:
        InvalidOptionError: It is not a number from 0 to below 1.
    """
    check_weight(name, value)
    if not value < 1:
        raise InvalidOptionError(f"{name} must be below 1, but got {value}.")


def first_copies(queries: Tensor) -> Tensor:
    """Return the ``(M)`` int64 numbers of distinct queries, each time the first of its copies."""
    seen = dict[bytes, int]()
    for number, query in enumerate(queries.detach().cpu()):
        # As bytes, since NumPy has no bfloat16.
        plain = query.clone(memory_format=torch.contiguous_format).flatten()
        content = plain.view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(content).digest()
        seen.setdefault(digest, number)
    return torch.tensor(list(seen.values()), device=queries.device)


def _refuse_other_tensors(
    path: Path, state: Mapping[str, Tensor], described: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not those which a header describes.

    Raises:
        CorruptDataError: A name, type or shape differs.
    """
    for name in sorted(described.keys() | state.keys()):
        found, wanted = (
            f"{name_of(tensors[name].dtype)} of shape {tuple(tensors[name].shape)}"
            if name in tensors
            else "none"
            for tensors in (state, described)
        )
        if found != wanted:
            raise CorruptDataError(
                f"{path} is not a codebook that oneway wrote: by its header the tensor {name} is "
                f"{wanted}, but there is {found}. Delete it and make it again."
            )


def _faults_of_certificate(told: Certificate, book: Codebook) -> Iterator[str]:
    """Yield what is wrong with a certificate's values, of what the table tells or bounds."""
    figures = figures_of_table(book)
    for name, true in figures.items():
        own = getattr(told, name)
        if type(own) is not type(true) or own != true:
            yield f"its {name} is not that of the table"
    independent: object = told.independent
    if not isinstance(independent, bool):
        yield "independent is neither true nor false"
    if not _is_count(told.queries, 2):
        yield "queries is no number of queries"
    if not _is_within(told.bits_measured, 0, figures["bits_most"] + 1e-9):
        yield "bits_measured is out of range"
    if not _is_within(told.level, 0, 1) or told.level in (0, 1):
        yield "level is not between 0 and 1"
    known = {str(label) for label in range(book.sizes.num_classes)}
    for label, error in told.error_by_label.items():
        if label not in known:
            yield "it certifies a label that there is not"
        yield from _faults_of_error(error, told.queries)
    if told.error is not None:
        yield from _faults_of_error(told.error, told.queries)
    distortion: Any = told.distortion
    for name, most in (("l1_probabilities", 2 + 1e-9), ("logits", math.inf)):
        found = distortion.get(name) if isinstance(distortion, dict) else None
        if not isinstance(found, dict) or not all(
            _is_within(value, 0, most) for value in found.values()
        ):
            yield f"the distortion of {name} is out of range"


def _faults_of_error(error: CertifiedError, queries: int) -> Iterator[str]:
    """Yield what is wrong with a certified error, of squared errors of values in [0, 1]."""
    if not _is_count(error.queries, 1) or error.queries > queries:
        yield "an error is certified on no number of its queries"
    for name in ("estimate", "low", "lower_bound", "alone"):
        if not _is_within(getattr(error, name), 0, 1):
            yield f"the {name} of an error is not from 0 to 1"
    if not _is_within(error.high, 0, math.inf) or error.high < error.low:
        yield "the interval of an error is none"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_within(value: object, least: float, most: float) -> bool:
    """Say whether something is a finite float from ``least`` to ``most``."""
    return isinstance(value, float) and math.isfinite(value) and least <= value <= most


def fault_of(book: Codebook) -> str | None:
    """Say what is wrong with a table's content, if anything is."""
    sizes = book.sizes
    labels, cells = torch.arange(sizes.num_classes), torch.arange(sizes.cells)
    values = book.values
    others = sizes.num_classes - sizes.listed
    total = values[:, : sizes.listed].sum(-1) + others * values[:, sizes.listed :].sum(-1)
    outside = (book.owner < 0) | (book.owner >= sizes.cells)
    checks = (
        (outside.any(), "a box belongs to a cell that there is not"),
        ((book.labels < 0).any() or (book.labels >= sizes.num_classes).any(), "a label is unknown"),
        (
            (book.classes < 0).any() or (book.classes >= sizes.num_classes).any(),
            "a class is unknown",
        ),
        ((book.classes[:, 0] != labels).any(), "a label does not come first"),
        ((book.classes.sort(-1).values.diff() == 0).any(), "a class is listed twice"),
        (book.edges.isnan().any(), "an edge is not a number"),
        (not book.offsets.isfinite().all(), "an offset is not finite"),
        ((book.offsets.abs() > MOST_OFFSET).any(), f"an offset is beyond {MOST_OFFSET:g} nats"),
        (not (values.isfinite().all() and (values > 0).all()), "a probability is not positive"),
        ((total - 1).abs().max() > 1e-6, "probabilities do not sum to 1"),
        ((values[:, :1] <= values[:, 1:]).any(), "a label is not the largest"),
        ((book.members < 0).any(), "a cell has less than no members"),
    )
    found = next((words for broken, words in checks if bool(broken)), None)
    if found is None and (
        (book.labels[book.owner] != labels.unsqueeze(-1)).any()
        or not torch.isin(cells, book.owner).all()
        or (book.edges == math.inf).all(-1).any(-1).logical_not().any()
    ):
        return "its boxes and cells do not fit together"
    return found
