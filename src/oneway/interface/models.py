"""Models as people have them, opened; and scores, from files, arrays or by asking a model."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import (
    TWO_CLASSES,
    check_confidences,
    check_count,
    check_logits,
    refuse_probabilities,
)
from oneway.contracts import ScoredTarget, Target
from oneway.data import ProgressCallback, image_tensor, no_progress, read_npz
from oneway.data.mapped import spool_parquet
from oneway.data.tables import read_table_file
from oneway.defenses.identity import Identity
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.interface.data import AS_IT_IS, Reading, as_array, read_rows
from oneway.releases import Outputs, logits_from_confidences, release
from oneway.targets import DefendedTarget, ask_variants, open_target, target_of
from oneway.targets.answers import checked_class_names
from oneway.targets.opening import named_target

SCORE_FILES = (".npy", ".npz", ".parquet")
"""Endings of files that hold scores rather than a model."""

Arrays = Mapping[str, NDArray[Any]]


def open_model(
    model: Any,
    *,
    outputs: Outputs | None = None,
    device: torch.device | None = None,
    batch_size: int = 512,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Target:
    """Open a model, wherever it is.

    Args:
        model: A path, an address or ``package.module:factory`` as
            :func:`oneway.targets.open_target` takes it, or an object as
            :func:`oneway.targets.target_of` does.
        outputs: What the model answers with, ``"logits"`` or ``"confidences"``; needed where its
            kind does not fix that, and never guessed.
        device: Where a module goes; None: one that is given as an object stays where it lies, and
            one of a file goes to the CPU.
        batch_size: Most queries that the model gets at once.
        class_names: Names of the classes in the order of the scores; None: the model's own.
        **options: Of the kind of model.

    Raises:
        OnewayError: The model cannot be opened.
    """
    asked: dict[str, Any] = {"outputs": outputs, "batch_size": batch_size, **options}
    if isinstance(model, str | Path):
        where = device or torch.device("cpu")
        return open_target(str(model), class_names=class_names, device=where, **asked)
    target = target_of(model, device=device, **asked)
    if class_names is not None:
        return named_target(target, checked_class_names(class_names), type(model).__name__)
    return target


class Scores(NamedTuple):
    """Clean scores of queries.

    Attributes:
        logits: ``(N, K)`` logits, in nats.
        queries: ``(N, ...)`` in ``[0, 1]``, or None.
        target: The model that was asked; None where its scores were given.
        compared: ``(N, ...)``, equal for equal queries of any data: the queries, or of a table its
            values before they were encoded; None without queries.
    """

    logits: Tensor
    queries: Tensor | None
    target: Target | None
    compared: Tensor | None

    def variants(self, given: Any, repeats: int | None) -> Tensor | None:
        """Return ``(N, m, K)`` logits of changed copies of each query; None if none are wanted.

        Args:
            given: These, if they are known.
            repeats: m + 1, answers to each query, its own among them, if a model is to be asked.

        Raises:
            InvalidOptionError: Both are given, or there is no model to ask, or it may answer
                defended; or ``repeats`` are fewer than 2.
        """
        if repeats is None:
            return None if given is None else torch.as_tensor(given)
        check_count("repeats", repeats, 2)
        if given is not None:
            raise InvalidOptionError("give scores of changed copies, or repeats, not both.")
        if not isinstance(self.target, ScoredTarget) or self.queries is None:
            raise InvalidOptionError(
                "repeats need the undefended model itself, to ask about changed copies of the "
                "queries. Pass the model and queries, or scores of changed copies: --variants "
                "FILE (variants=...)."
            )
        # Always the same changes, so that nobody looks for favorable ones.
        generator = torch.Generator().manual_seed(0)
        return ask_variants(self.target, self.queries, repeats - 1, generator)


def read_scores(
    model_or_scores: Any,
    queries: Any = None,
    *,
    outputs: Outputs | None = None,
    reading: Reading = AS_IT_IS,
    device: torch.device | None = None,
    report: ProgressCallback = no_progress,
    **options: Any,
) -> Scores:
    """Return clean scores of queries, and the queries if they are there.

    Args:
        model_or_scores: Scores: ``(N, K)`` as an array or a tensor, or an .npy, .npz or .parquet
            file of them, which may hold the queries, too, as ``images`` or ``records``. Of .npy and
            .parquet files, which may be larger than memory, parts are read where they are needed.
            ``values`` tell records from those of a file with another encoding.
            Or a model: see :func:`open_model`; it is asked about the queries.
        queries: Data: see :func:`~oneway.interface.data.read_rows`. None: those in the file.
        outputs: What the scores are, where neither an .npz file nor the kind of model says so.
        reading: How the queries are read.
        device: Where a model is asked.
        report: Receives the progress.
        **options: Of the kind of model.

    Raises:
        OnewayError: Scores, model or queries cannot be used.
    """
    source = model_or_scores
    in_file = isinstance(source, str | Path) and Path(source).suffix.lower() in SCORE_FILES
    if not in_file and not isinstance(source, np.ndarray | Tensor):
        if queries is None:
            got = str(source) if isinstance(source, str | Path) else f"a {type(source).__name__}"
            raise InvalidOptionError(
                f"a model, here {got}, needs queries to be asked about. Pass "
                "--queries DATA (queries=...): a folder or file of images, or a table. Scores are "
                "an array or a tensor, or a file that ends in .npy, .npz or .parquet: save a table "
                "with a column for each class as .npy, by `frame.to_numpy()`."
            )
        # First, since a model that cannot be opened is found in no time, and images take long.
        opened = open_model(source, outputs=outputs, device=device, **options)
        rows = read_rows(queries, "the queries", reading, report=report)
        target = rows.asked(opened)
        report("ask the model", 0.0)
        clean = DefendedTarget(target, Identity()).trace(rows.queries).clean_logits
        report("ask the model", 1.0)
        return Scores(clean, rows.queries, target, rows.compared)
    if options:
        raise InvalidOptionError(
            f"scores take no options of a model, but got {', '.join(options)}. Leave them out."
        )
    path = Path(source) if in_file else Path("the array")
    arrays = _read_arrays(path) if in_file else {"array": as_array(source)}
    logits = scores_to_logits(arrays, path, outputs)
    shown = compared = _queries_in(arrays, path)
    if shown is not None and "values" in arrays:
        compared = torch.from_numpy(arrays["values"])
    if queries is not None:
        rows = read_rows(queries, "the queries", reading, report=report)
        shown, compared = rows.queries, rows.compared
    if shown is not None and len(shown) != len(logits):
        raise InvalidOptionError(
            f"there must be a query for each row of scores, but there are {len(shown)} queries and "
            f"{len(logits)} rows. Pass those that the scores are of, in the same order."
        )
    return Scores(logits, shown, None, compared)


def _read_arrays(path: Path) -> Arrays:
    """Return the arrays of a file of scores, by name."""
    if path.suffix.lower() != ".parquet":
        return read_npz(path)
    columns = spool_parquet(path, ("logits", "confidences", "records", "values"))
    return {name: column.numpy() for name, column in columns.items()}


def _queries_in(arrays: Arrays, path: Path) -> Tensor | None:
    """Return the queries that ``oneway score`` writes beside scores; None if there are none."""
    if "records" in arrays:
        return torch.from_numpy(arrays["records"]).float()
    return image_tensor(arrays["images"], path) if "images" in arrays else None


def take_array(arrays: Arrays, path: Path, *names: str) -> NDArray[Any]:
    """Return the one array of an .npy file, or the first of ``names`` that an .npz file has.

    Raises:
        CorruptDataError: It has none of them.
    """
    for name in (*names, "array"):
        if name in arrays:
            return arrays[name]
    raise CorruptDataError(
        f"{path} must hold an array named {' or '.join(names)}, "
        f"but holds {', '.join(sorted(arrays)) or 'nothing'}."
    )


def scores_to_logits(arrays: Arrays, path: Path, outputs: str | None = None) -> Tensor:
    """Return ``(N, K)`` logits from an .npz that names its scores, or an array with its kind.

    Raises:
        CorruptDataError: There are no scores in it.
        InvalidOptionError: ``outputs`` is missing for an array without a name.
        InvalidTensorError: The scores are not what their name says.
    """
    scores, found = _scores(arrays, path, outputs)
    if found == "confidences":
        return logits_from_confidences(scores)
    check_logits(scores, f"logits in {path}")
    return scores


def scores_to_confidences(arrays: Arrays, path: Path, outputs: str | None = None) -> Tensor:
    """Return ``(N, K)`` float32 confidences: what a client would see of these scores.

    Raises:
        CorruptDataError: There are no scores in it.
        InvalidOptionError: ``outputs`` is missing for an array without a name.
        InvalidTensorError: The scores are not what their name says.
    """
    scores, found = _scores(arrays, path, outputs)
    if found == "logits":
        return release(scores)
    check_confidences(scores, f"confidences in {path}")
    return scores.float()


def _scores(arrays: Arrays, path: Path, outputs: str | None) -> tuple[Tensor, str]:
    found = next((name for name in ("logits", "confidences") if name in arrays), outputs)
    if "array" in arrays and outputs is None:
        raise InvalidOptionError(
            f"{path} does not say what it holds. Pass --outputs logits or --outputs confidences "
            "(outputs=...)."
        )
    if found not in ("logits", "confidences"):
        if found is not None:
            raise InvalidOptionError(f"outputs must be logits or confidences, but is {found!r}.")
        take_array(arrays, path, "logits", "confidences")
    scores = take_array(arrays, path, str(found))
    if scores.ndim != 2 or scores.dtype not in (np.float16, np.float32, np.float64):
        remedy = TWO_CLASSES if scores.ndim == 1 else "Save `np.asarray(scores, np.float64)`."
        raise CorruptDataError(
            f"scores in {path} must be float16, float32 or float64 of shape (N, K), but are "
            f"{scores.dtype} of shape {scores.shape}. {remedy}"
        )
    if not len(scores):
        raise CorruptDataError(f"scores in {path} must have at least one row, but have none.")
    tensor = torch.from_numpy(scores)
    if found == "logits":
        remedy = "Say confidences." if "array" in arrays else "Name the array confidences."
        refuse_probabilities(tensor, f"the logits in {path}", remedy)
    return tensor, str(found)


KINDS = {int: "whole numbers", bool: "truth values", str: "texts"}
"""What a file may say, by Python's type."""

WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_groups(groups: Any, rows: int) -> Tensor | None:
    """Return ``(N)`` int64 groups; None without them.

    Whole numbers stay as they are, also where they are texts. Another text becomes a number of 63
    bits that depends on the text alone, so that files of different rows agree.

    Args:
        groups: ``(N)`` whole numbers or texts as an array, a tensor or a list; or an .npy file, an
            .npz file with ``groups``, or a .csv file with a column ``groups``.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one whole number or text per query.
    """
    if groups is None:
        return None
    remedy = "Write the person, account or device of each query"
    values = _read(groups, "groups", (int, str), rows, remedy)
    return torch.tensor([_number(value) for value in values], dtype=torch.int64)


def read_sensitive(sensitive: Any, rows: int) -> Tensor | None:
    """Return ``(N)`` int64 numbers of sensitive values; None without them.

    Args:
        sensitive: ``(N)`` whole numbers, truth values or texts as an array, a tensor or a list; or
            an .npy file, an .npz file with ``sensitive``, or a .csv file with a column
            ``sensitive``.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one such value per query.
    """
    if sensitive is None:
        return None
    remedy = "Write one for each query, and a text for those that are missing"
    values = _read(sensitive, "sensitive", (int, bool, str), rows, remedy)
    numbers = dict[int | str, int]()
    found = [numbers.setdefault(value, len(numbers)) for value in values]
    return torch.tensor(found, dtype=torch.int64)


def _read(
    source: Any, name: str, kinds: Sequence[type], rows: int, remedy: str
) -> Sequence[int | str]:
    """Return the values of an array or a column, one per query.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one value of these kinds per query.
    """
    where = name
    if isinstance(source, str | Path):
        path, where = Path(source), f"{name} in {source}"
        is_table = path.suffix.lower() == ".csv"
        columns = read_table_file(path).columns if is_table else read_npz(path)
        values = take_array(dict[str, Any](columns), path, name)
    else:
        values = np.asarray(source)
    read = values.tolist() if values.shape == (rows,) else []
    missing = [row for row, each in enumerate(read) if each in (None, "") or each != each]
    if missing:
        raise CorruptDataError(
            f"{where} must say something of each of {rows} queries, but is missing in "
            f"{len(missing)} rows, row {missing[0]} first, counted from 0. {remedy}."
        )
    known = [each for each in read if type(each) in kinds and not _is_large(each)]
    if len(known) != rows:
        words = " or ".join(KINDS[kind] for kind in kinds)
        raise CorruptDataError(
            f"{where} must be {rows} {words}, one per query, but is {values.dtype} of "
            f"shape {values.shape}, with {len(known)} such values. {remedy}, in the order of the "
            "queries."
        )
    return known


def _is_large(value: int | str) -> bool:
    return isinstance(value, int) and abs(value) >= 2**63


def _number(value: int | str) -> int:
    """Return the number of a group."""
    if isinstance(value, str):
        if WHOLE.fullmatch(value):
            return int(value)  # a column of numbers is read as texts if one row is none
        return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1
    return value
