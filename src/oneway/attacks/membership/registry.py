"""The registry of membership attacks: the only table from their names to them."""

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.cell_likelihood import CellLikelihood
from oneway.attacks.membership.confidence import TrueLabelConfidence
from oneway.attacks.membership.entropy import ModifiedEntropy
from oneway.attacks.membership.label_copies import LabelCopies
from oneway.attacks.membership.label_gap import LabelGap
from oneway.attacks.membership.lira import OfflineLiRA, OnlineLiRA
from oneway.attacks.membership.quantile_regression import QuantileRegression
from oneway.attacks.membership.rmia import OfflineRMIA
from oneway.attacks.membership.stack import MembershipStack
from oneway.attacks.membership.trained_classifier import TrainedClassifier

MEMBERSHIP_ATTACKS: dict[str, MembershipAttack] = {
    attack.name: attack
    for attack in (
        LabelGap(),
        LabelCopies(),
        TrueLabelConfidence(),
        ModifiedEntropy(),
        QuantileRegression(),
        TrainedClassifier(),
        OfflineRMIA(),
        OfflineLiRA(),
        OnlineLiRA(),
        CellLikelihood(),
        MembershipStack(),
    )
}
"""All membership attacks by name, in the order they run: the stack comes after those it mixes."""
