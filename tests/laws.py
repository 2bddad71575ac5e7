"""One case for a law on many combinations of values."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from allpairspy import AllPairs


def looped(names: str | Sequence[str], values: Iterable[Any], **_: object) -> Callable[..., Any]:
    """Run a law with each of ``values`` within one case; a failure says with which.

    Called like ``pytest.mark.parametrize``, and stacked like it.

    Args:
        names: Of one argument; or of several, as a sequence.
        values: What that argument takes; or tuples of what they take.
    """
    several = not isinstance(names, str)
    chosen = [
        dict(zip(names, value, strict=True)) if several else {str(names): value} for value in values
    ]

    def decorate(law: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(law)
        def run(*arguments: Any, **others: Any) -> None:
            for given in chosen:
                try:
                    law(*arguments, **others, **given)
                except BaseException as error:
                    error.add_note(f"where {given}")
                    raise

        signature = inspect.signature(law)
        kept = [value for name, value in signature.parameters.items() if name not in chosen[0]]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate


def paired(**values: Iterable[Any]) -> Callable[..., Any]:
    """Run a law so often that every two values of two arguments meet at least once.

    A fault of one value, or of two together, shows as surely as in all combinations of all
    arguments, which are several times as many.
    """
    return looped(list(values), AllPairs([list(those) for those in values.values()]))
