"""The only table from names to attacks."""

from oneway.attacks.adversarial_training import adversarial_training
from oneway.attacks.averaging import averaging
from oneway.attacks.class_representative import class_representative
from oneway.attacks.label_only import label_only
from oneway.attacks.optimising import optimising
from oneway.attacks.retrained import retrained
from oneway.attacks.static import static
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
