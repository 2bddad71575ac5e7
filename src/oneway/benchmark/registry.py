"""The only table from names to attacks."""

from oneway.attacks import (
    adversarial_training,
    averaging,
    class_representative,
    label_only,
    optimising,
    retrained,
    static,
)
from oneway.contracts import Attack

ATTACKS: dict[str, Attack] = {
    "label-only": label_only,
    "static": static,
    "retrained": retrained,
    "adversarial-training": adversarial_training,
    "averaging": averaging,
    "optimising": optimising,
    "class-representative": class_representative,
}
"""All attacks, by the name that experiments call them."""
