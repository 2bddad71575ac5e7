"""Train a copy on the labels of answers: the floor under every release of scores."""

from collections.abc import Mapping

from torch.nn.functional import one_hot

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge


class HardLabels(StealingAttack):
    """Ask about inputs of its own, and train a copy on the labels of the answers."""

    name = "hard-labels"
    knows = "inputs like the queries; it uses the labels of the answers alone"
    requires = frozenset({"own"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about the first ``budget`` inputs, and train on the arg max of the answers."""
        asked = knowledge.own[: knowledge.budget]
        answers = knowledge.ask(asked)
        labels = one_hot(answers.argmax(-1), answers.shape[-1]).to(asked.dtype)
        return {"hard labels": knowledge.train(asked, labels)}
