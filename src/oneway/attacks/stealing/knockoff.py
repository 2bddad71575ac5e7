"""Steal with public inputs of another kind: Knockoff nets."""

from collections.abc import Mapping

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge


class Knockoff(StealingAttack):
    """Ask about public inputs of another kind, and train a copy on the released confidences.

    Source:
        Orekondy, Schiele & Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models", CVPR
        2019, with random queries.
    """

    name = "knockoff"
    knows = "public inputs of another kind alone"
    requires = frozenset({"public"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about the first ``budget`` public inputs, and train on the answers."""
        if knowledge.public is None:
            return {}
        asked = knowledge.public[: knowledge.budget]
        return {"public inputs": knowledge.train(asked, knowledge.ask(asked))}
