"""Flags: suspicious facts about an evaluation or a release, each with a page that explains it."""

import re
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from oneway.errors import UnknownNameError

PAGE = re.compile(
    r"# (?P<name>[a-z-]+)\n\n(?P<says>[^\n]+)\.\n\n## Raised if\n\n(?P<raised_if>.*)\n\n"
    r"## Why it matters\n\n(?P<why>.*)\n\n## What to do\n\n(?P<what_to_do>.*)\n",
    re.DOTALL,
)
"""The form of a page in ``flag_pages``; links are relative to ``docs/flags``."""


@dataclass(frozen=True)
class FlagKind:
    """A flag that an evaluation can raise; its texts are Markdown.

    Attributes:
        about: Subject of the flag: the attack, or the release.
        statement: Common end of the details of such flags; empty where details differ.
        says: The flag's statement, without its full stop.
        raised_if: Condition that raises the flag.
        why: Reason that the flag matters.
        what_to_do: Remedies.
        page: The whole page.
    """

    about: Literal["the attack", "the release"]
    statement: str
    says: str
    raised_if: str
    why: str
    what_to_do: str
    page: str


def _kind(name: str, about: Literal["the attack", "the release"], statement: str = "") -> FlagKind:
    """Read a flag's page, which is part of the package."""
    file = resources.files("oneway.evaluation") / "flag_pages" / f"{name}.md"
    page = file.read_text(encoding="utf-8")
    parts = PAGE.fullmatch(page)
    assert parts is not None and parts["name"] == name, name  # noqa: S101, PT018  tests read all
    says = parts["says"][0].lower() + parts["says"][1:]
    texts = {key: parts[key] for key in ("raised_if", "why", "what_to_do")}
    return FlagKind(about, statement, says, page=page, **texts)


FLAGS: dict[str, FlagKind] = {
    "attack-failed": _kind(
        "attack-failed", "the attack", "error not below the label-only baseline: that attack failed"
    ),
    "retraining-failed": _kind(
        "retraining-failed", "the attack", "retrained is weaker than static: the retraining failed"
    ),
    "more-budget-smaller-gap": _kind("more-budget-smaller-gap", "the release"),
    "unstable-answers": _kind("unstable-answers", "the release"),
    "labels-changed": _kind(
        "labels-changed", "the release", "labels changed or tied in what was released"
    ),
    "ties-or-zeros": _kind("ties-or-zeros", "the release"),
    "scores-descend": _kind("scores-descend", "the release"),
    "worse-calibrated": _kind("worse-calibrated", "the release"),
    "tells-more-than-scores": _kind("tells-more-than-scores", "the release"),
    "accuracy-below-majority": _kind("accuracy-below-majority", "the attack"),
    "too-few-seeds": _kind("too-few-seeds", "the attack"),
    "not-trained-out": _kind(
        "not-trained-out", "the attack", "might still gain from longer training"
    ),
    "control-failed": _kind("control-failed", "the attack"),
}
"""All flags, by the name of their pages."""


@dataclass(frozen=True)
class Flag:
    """A raised flag.

    Attributes:
        name: Key of ``FLAGS``, and name of the flag's page.
        detail: The finding that raised the flag, in words.
        attack: Name of the attack that the flag is about; None: the flag is about no attack.
    """

    name: str
    detail: str
    attack: str | None = None

    def __post_init__(self) -> None:
        """Refuse a flag that has no page.

        Raises:
            UnknownNameError: The name is none of ``FLAGS``.
        """
        UnknownNameError.check("flag", self.name, FLAGS)
