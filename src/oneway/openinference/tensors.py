"""Tensors in messages: their datatypes, their form, and numbers in JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from math import prod
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError, UnknownNameError

Datatype: TypeAlias = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BYTES",
]  # fmt: skip

LAYOUTS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""Layout of each datatype's binary data. A text of BYTES follows its length, four bytes."""

FLOATS = {name: layout for name, layout in LAYOUTS.items() if layout.kind == "f"}
"""Those of queries and scores."""


MOST_ROWS = "max_request_rows"
"""Parameter of a model's metadata in which oneway's own server states the most queries of a
request."""

MOST_ROWS_HEADER = "oneway-max-request-rows"
"""HTTP header in which that server states the same, if it refuses a request with more."""

REFUSED_HEADER = "oneway-refused"
"""HTTP header of that server's errors, whose texts hold no value of a query."""


KINDS = {str: "texts", bool: "true or false", type(None): "null", dict: "objects"}
"""Values of JSON that are no numbers, in words."""


class MessageError(Exception):
    """A message breaks the protocol. The text holds names, shapes and counts, never a value.

    Attributes:
        reason: The fault in one word, such as ``"form"`` or ``"output_missing"``.
        most_rows: The most queries that a request may have, if it has more; else None.
    """

    def __init__(self, text: str, reason: str = "form", *, most_rows: int | None = None) -> None:
        """Compose the error."""
        super().__init__(text)
        self.reason, self.most_rows = reason, most_rows


@dataclass(frozen=True)
class MessageTensor:
    """One tensor of a server's message; all but its name and datatype are unchecked JSON."""

    name: str
    datatype: str
    shape: list[Any]
    data: Any = None
    parameters: Any = None

    def check(self) -> None:
        """Refuse the tensor of an answer unless it has the form that the protocol says.

        Raises:
            MessageError: Datatype, sizes, data or parameters have another form.
        """
        parameters = {} if self.parameters is None else self.parameters
        if not (
            self.datatype in get_args(Datatype)
            and all(type(size) is int and size >= 0 for size in self.shape)
            and isinstance(self.data, list | None)
            and isinstance(parameters, dict)
            and all(isinstance(value, str | int | float) for value in parameters.values())
        ):
            raise MessageError(
                f"must send output {self.name!r} with a datatype of the protocol, a shape of "
                "whole numbers, data in a list and plain parameters, but does not. Look into the "
                "server's log."
            )


@dataclass(frozen=True)
class DeclaredTensor:
    """An input as a model declares it.

    Attributes:
        datatype: Its datatype.
        shape: The shape of one query; -1 where any size goes.
    """

    datatype: Datatype
    shape: tuple[int, ...]


def read_tensors(message: Any, key: str) -> dict[str, MessageTensor]:
    """Return the tensors that a message lists, by name.

    Args:
        message: A JSON value.
        key: The name of the list, such as ``"outputs"``.

    Raises:
        MessageError: There is no such list of tensors, or two of them have the same name.
    """
    entries = message.get(key) if isinstance(message, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("datatype"), str)
        and isinstance(entry.get("shape"), list)
        for entry in entries
    ):
        fault = isinstance(message, dict) and "error" in message
        raise MessageError(
            f"must answer with an object whose {key!r} are a list of objects with name, datatype "
            "and shape, as the Open Inference Protocol says, but "
            f"{'reports an error with status 200' if fault else 'does not'}. Check that the "
            "address is that of a model of version 2 of the protocol."
        )
    names = [field.name for field in fields(MessageTensor)]
    tensors = {
        entry["name"]: MessageTensor(**{name: entry.get(name) for name in names})
        for entry in entries
    }
    if len(tensors) < len(entries):
        raise MessageError(f"must name each of its {key} once, but does not.", "output_missing")
    return tensors


def read_scores(tensor: MessageTensor) -> NDArray[np.float64]:
    """Return the numbers of an output, in its shape.

    Raises:
        MessageError: The output is not floating, or its numbers do not fit its shape.
    """
    tensor.check()
    if tensor.datatype not in FLOATS:
        raise MessageError(
            f"must send scores as one of {', '.join(FLOATS)}, but output {tensor.name!r} is "
            f"{tensor.datatype}. Say which output holds the scores, by output_name.",
            "datatype",
        )
    values, count = read_numbers(tensor.data), prod(tensor.shape)
    if values.size != count or (values.ndim > 1 and list(values.shape) != tensor.shape):
        raise MessageError(
            f"must send output {tensor.name!r} flat or nested as its shape says, {count} numbers, "
            f"but sends {values.size} of shape {tuple(values.shape)}. Look into the server's log."
        )
    try:
        return values.reshape(tensor.shape)
    except (ValueError, OverflowError):  # more dimensions, or larger ones, than an array has
        raise MessageError(
            f"must send output {tensor.name!r} of a shape (N, K), but sends {len(tensor.shape)} "
            "dimensions that no array has. Look into the server's log."
        ) from None


def read_numbers(data: Any, *, booleans: bool = False) -> NDArray[np.float64]:
    """Return nested lists of numbers as an array.

    Args:
        data: A JSON value.
        booleans: Take true and false among numbers as 1 and 0, as records may hold them.

    Raises:
        MessageError: ``data`` are something else, or lists of one level differ in length.
    """
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):  # NumPy's text may quote what it could not read
        values = np.empty(0, object)
    members: Iterable[Any] = data if isinstance(data, list) else [data]
    for _ in range(values.ndim - 1):
        members = chain.from_iterable(members)
    if values.dtype.kind not in "fiu" or (not booleans and bool in set(map(type, members))):
        raise MessageError(
            "must answer with rows of numbers of one length, but the scores hold "
            f"{_kinds_of(data)}. Look at one answer of the server, and name the place of its "
            "numbers."
        )
    return values.astype(np.float64)


def _kinds_of(data: Any) -> str:
    """Return in words what nested lists hold that is no number."""
    found: set[str] = set()
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif type(value) in KINDS:
            found.add(KINDS[type(value)])
    return " and ".join(sorted(found)) or "lists of different lengths, or huge numbers"


def read_by_label(scores: Any, labels: Any, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Return scores in the order of the classes, of a server that names the class of each score.

    Args:
        scores: ``(N, K)`` nested lists of numbers, as a JSON value.
        labels: ``(N, K)`` nested lists of class names (text or whole numbers), in any order.
        class_names: The K classes, in the order of the result.

    Raises:
        MessageError: The two are no such lists, or a query's labels are not each class once.
    """
    if not isinstance(labels, list) or not all(
        isinstance(row, list) and all(type(label) in (str, int) for label in row) for row in labels
    ):
        raise MessageError(
            "must answer with rows of labels, but they are something else. Look at one answer of "
            "the server, and name the place of its labels, such as '*.*.label'."
        )
    named = [[str(label) for label in row] for row in labels]
    if not isinstance(scores, list) or [*map(_length, scores)] != [*map(len, named)]:
        raise MessageError("must answer with one label for each score, but does not.")
    wanted = sorted(class_names)
    wrong = [len(row) for row in named if sorted(row) != wanted]
    if wrong:
        raise MessageError(
            f"must answer each query with one score for each of the {len(wanted)} classes "
            f"({', '.join(class_names)}), but {len(wrong)} of {len(named)} rows have other labels, "
            f"or too few: {min(wrong)} at least. Ask the server for the scores of all classes, "
            "not of the top k, and spell class_names (--classes) as the server does."
        )
    places = [{label: at for at, label in enumerate(row)} for row in named]
    return read_numbers(
        [[row[at[name]] for name in class_names] for row, at in zip(scores, places, strict=True)]
    )


def _length(row: Any) -> int:
    """Return the length of a list, and -1 of anything else."""
    return len(row) if isinstance(row, list) else -1


def tensor_message(name: str, datatype: str, numbers: NDArray[Any]) -> dict[str, Any]:
    """Return a tensor as JSON, its numbers flat in row-major order."""
    shape, data = list(numbers.shape), numbers.ravel().tolist()
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def choose_output(outputs: Mapping[str, Any], output_name: str | None, server: str) -> str:
    """Return the name of the output that holds the scores.

    Args:
        outputs: The outputs that the server declares, with ``datatype`` and ``shape``; it may
            declare none.
        output_name: The user's choice. None: the only output of floats of shape (N, K).
        server: The server, as messages name it.

    Raises:
        UnknownNameError: The server declares outputs, and none of that name.
        InvalidOptionError: There is no choice, and not exactly one output fits.
    """
    if output_name is not None:
        if outputs and output_name not in outputs:
            raise UnknownNameError(f"output of {server}", output_name, outputs)
        return output_name
    floats = (name for name, tensor in outputs.items() if tensor.datatype in FLOATS)
    fitting = [name for name in floats if len(outputs[name].shape) == 2]
    if len(fitting) != 1:
        declared = [f"{name} {tensor.datatype} {tensor.shape}" for name, tensor in outputs.items()]
        raise InvalidOptionError(
            f"say which output of {server} holds the scores, by output_name: {len(fitting)} of "
            f"its {len(outputs)} outputs are floats of shape (N, K). It has "
            f"{', '.join(declared) or 'none'}."
        )
    return fitting[0]
