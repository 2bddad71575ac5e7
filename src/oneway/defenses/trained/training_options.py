"""What trained defenses refuse of the options of their training."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from oneway.checks import check_above, check_count

Checks = Mapping[str, Callable[[str, Any], None]]
"""By option: raises unless its value is in range."""

COMMON: Checks = {
    "hidden": check_count,
    "epochs": check_count,
    "learning_rate": partial(check_above, bound=0),
    "batch_size": partial(check_count, least=2),
}
"""What all of them are told."""


def check_options(checks: Checks, options: Mapping[str, Any]) -> None:
    """Refuse options that are outside their range.

    Raises:
        InvalidOptionError: One is.
    """
    for name, value in options.items():
        checks[name](name, value)
