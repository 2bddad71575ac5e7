"""Train a copy on whole answers, and on what a known table says of them."""

from collections.abc import Mapping

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge


class SoftLabels(StealingAttack):
    """Ask about inputs of its own, and train a copy on the released confidences.

    A thief who knows the table of a codebook has a second way: it replaces each answer by the mean
    of the clean confidences that give this answer, which takes out decoys.

    Source:
        Tramer et al., "Stealing Machine Learning Models via Prediction APIs", USENIX Security 2016;
        Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    name = "soft-labels"
    knows = "inputs like the queries, and the table of a codebook"
    requires = frozenset({"own"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about the first ``budget`` inputs, and train on the answers."""
        asked = knowledge.own[: knowledge.budget]
        answers = knowledge.ask(asked)
        copies = {"as released": knowledge.train(asked, answers)}
        if knowledge.cell_means is not None:
            copies["means of cells"] = knowledge.train(asked, knowledge.cell_means(answers))
        return copies
