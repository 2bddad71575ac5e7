"""Map the labels of data to a model's classes by name: the model's class list decides."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from oneway.checks import first_names
from oneway.errors import CorruptDataError, InvalidOptionError


@dataclass(frozen=True)
class ClassOrder:
    """The classes of a model, in the order of its scores.

    Attributes:
        names: K names.
        source: Where the order comes from, in words.
    """

    names: tuple[str, ...]
    source: str


def class_order(
    num_classes: int,
    *,
    declared: Sequence[str] | None,
    of_model: Sequence[str] | None,
    of_data: Mapping[str, Sequence[str] | None],
) -> ClassOrder:
    """Return the order of a model's classes, or refuse to guess it.

    The names that the model or its operator gives decide. Without them, the sorted names of the
    data are used if there is one for each class.

    Args:
        num_classes: K, the number of scores in an answer.
        declared: The operator's list of classes, in the order of the scores; or None.
        of_model: The model's own list; or None.
        of_data: The class names of each file, by the name of the file; None for a file of class
            numbers.

    Raises:
        InvalidOptionError: Two lists disagree, a list does not have K names, or the names of the
            data do not settle the order.
    """
    for source, names in (("--classes", declared), ("the model", of_model)):
        if names is None:
            continue
        if len(names) != num_classes or len(set(names)) != len(names):
            raise InvalidOptionError(
                f"{source} must name each of {num_classes} classes once, one for each score, but "
                f"names {len(names)}: {listed(names)}."
            )
    if of_model is not None:
        if declared is not None and list(map(_normal, declared)) != list(map(_normal, of_model)):
            raise InvalidOptionError(
                f"--classes names {listed(declared)}, but the model's classes are "
                f"{listed(of_model)}, in this order. Leave --classes out."
            )
        # A model's own names decide; equal ones may be those that it was opened with.
        return ClassOrder(tuple(of_model), "the model" if declared is None else "--classes")
    if declared is not None:
        return ClassOrder(tuple(declared), "--classes")
    named = {where: names for where, names in of_data.items() if names is not None}
    if not named:
        return ClassOrder(tuple(map(str, range(num_classes))), "the data's class numbers")
    return ClassOrder(_order_of_data(num_classes, named), "the data's class names, sorted")


def _order_of_data(num_classes: int, named: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    remedy = (
        f"Pass --classes with the {num_classes} names in the order of the model's scores, such as "
        "--classes cat,dog,fox."
    )
    names = list({_normal(name): name for of_file in named.values() for name in of_file}.values())
    files = "; ".join(f"{where}: {listed(of_file)}" for where, of_file in named.items())
    if len(names) != num_classes:
        raise InvalidOptionError(
            f"the model gives {num_classes} scores and does not name its classes, but the data "
            f"names {len(names)} ({files}). {remedy}"
        )
    by_text = sorted(names)
    numbers = {name: number for name in names if (number := _number(name)) is not None}
    doubt = ""
    # Sorted as text, as by who trained on a folder per class, "10" comes before "2".
    if len(numbers) == len(names) and sorted(names, key=numbers.__getitem__) != by_text:
        doubt = "by numbers whose order as text differs from their order as numbers"
    elif sorted(names, key=partial(unicodedata.normalize, "NFC")) != by_text:
        doubt = "with accents as a Mac stores them, by which they are sorted differently"
    if doubt:
        raise InvalidOptionError(
            f"the model does not name its classes, and the data names them {doubt} ({files}). "
            f"{remedy}"
        )
    return tuple(by_text)


def _number(name: str) -> float | None:
    """Return the number that a class name is in digits; None if it is none."""
    return float(name) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name) else None


def _normal(name: str) -> str:
    """Return the same text for two spellings of one class name.

    Apple's file systems store an accent as a character of its own. A model of whole numbers may
    call its classes 1.0 and 2.0, and a file may call them 01 and 02.
    """
    number = _number(name)
    if number is not None and number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    return unicodedata.normalize("NFC", name)


def _places(names: Sequence[str], order: ClassOrder) -> list[int | None]:
    """Return each name's position in a model's classes; None for a name of no class.

    A name has the position of the class that is spelled the same; or else of the only class that
    is the same in another spelling, unless another name has that position.
    """
    exact = {name: place for place, name in enumerate(order.names)}
    spellings = Counter(map(_normal, order.names))
    alike = {_normal(name): place for name, place in exact.items() if spellings[_normal(name)] == 1}
    places = [exact.get(name, alike.get(_normal(name))) for name in names]
    taken = Counter(places)
    return [
        place if name in exact or taken[place] == 1 else None
        for name, place in zip(names, places, strict=True)
    ]


def map_labels(
    labels: Tensor, names: Sequence[str] | None, order: ClassOrder, where: str
) -> Tensor:
    """Return labels as positions in a model's classes.

    Args:
        labels: ``(N)`` int64: positions in ``names``, or the model's class numbers.
        names: The class names of the data; None: the labels are the model's class numbers.
        order: The model's classes.
        where: The name of the data in messages.

    Returns:
        ``(N)`` int64 in ``[0, K)``.

    Raises:
        CorruptDataError: A class of the data is none of the model's.
    """
    num_classes = len(order.names)
    if names is None:
        outside = int(((labels < 0) | (labels >= num_classes)).sum())
        if outside:
            raise CorruptDataError(
                f"labels of {where} must lie in [0, {num_classes}), the model's class numbers, but "
                f"{outside} of {len(labels)} do not. Number them as the model does, or store the "
                "names of the classes."
            )
        return labels
    places = _places(names, order)
    unknown = [name for name, place in zip(names, places, strict=True) if place is None]
    if unknown:
        raise CorruptDataError(
            f"{where} has classes that the model does not have: {listed(unknown)}. The model's "
            f"classes ({order.source}) are {listed(order.names)}. Rename them, take them out, or "
            "pass --classes."
        )
    positions = torch.tensor(places, dtype=torch.int64)
    return positions[labels.cpu()].to(labels.device)


def class_counts(labels: Tensor | None, num_classes: int) -> list[int] | None:
    """Return how many rows each class has; None without labels."""
    if labels is None:
        return None
    counts: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
    return counts


def listed(names: Sequence[str]) -> str:
    """Return quoted names for a message, the first 10 of many."""
    return first_names([repr(name) for name in names])
