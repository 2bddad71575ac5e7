"""Flags: what is suspicious about an evaluation or a release. Each has a page in the docs."""

from dataclasses import dataclass

from oneway.errors import UnknownNameError

FLAGS = {
    "attack-failed": "an attacker does worse than one who is given the label alone",
    "retraining-failed": "an attacker who retrained does worse than one who did not",
    "more-budget-smaller-gap": "a stronger defense closes less of the gap",
    "unstable-answers": "answers are random, or depend on the other queries of a batch",
    "labels-changed": "the arg max changed in what was released",
    "ties-or-zeros": "released vectors hold exact ties or zeros",
    "worse-calibrated": "released probabilities are worse calibrated than clean ones",
    "tells-more-than-scores": "the release depends on the input beyond the clean scores",
    "too-few-seeds": "fewer seeds than were asked for, or than a published number needs",
    "not-trained-out": "the attackers were still learning when their time was over",
    "control-failed": "the audit missed a planted leak, or saw one where there is none",
}
"""Every flag by name, with what it says. The documentation has a page of each."""


@dataclass(frozen=True)
class Flag:
    """One raised flag.

    Attributes:
        name: A key of ``FLAGS``, and the name of its page.
        detail: What raised it, in words.
    """

    name: str
    detail: str

    def __post_init__(self) -> None:
        """Refuse a flag that nobody could look up.

        Raises:
            UnknownNameError: The name is none of ``FLAGS``.
        """
        if self.name not in FLAGS:
            raise UnknownNameError("flag", self.name, FLAGS)
