"""HAMP, its half at test time: scores of random inputs, in the order of the query's scores."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_count
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, RandomDefense
from oneway.defenses.scores import log_probabilities
from oneway.errors import InvalidOptionError
from oneway.options import Options, option


class RandomScores(nn.Module):
    """Scores of random inputs, each row in descending order.

    Attributes:
        scores: ``(R, K)`` float64 log probabilities. Even until they are fitted.
    """

    scores: Tensor

    def __init__(self, num_classes: int, inputs: int) -> None:
        """Build scores that are not fitted yet.

        Args:
            num_classes: K, at least 2.
            inputs: R, the number of random inputs.

        Raises:
            InvalidOptionError: A number is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("inputs", inputs)
        self.architecture: dict[str, Any] = {"num_classes": num_classes, "inputs": inputs}
        self.register_buffer("scores", torch.zeros(inputs, num_classes, dtype=torch.float64))


class RandomInputs(Options):
    """Options of the random inputs."""

    inputs: int = option(
        "Number of random inputs. Theirs: a new one for each answer.", default=1000
    )


class Hamp(DefenseWithState, RandomDefense):
    """Answer with the classifier's scores of a random input, put into the query's order.

    Entries of a random input are uniform in ``[0, 1]``. Only the order of the clean scores is
    released, with numbers that have nothing to do with the query.

    Source:
        Chen & Pattabiraman, "Overconfidence is a Dangerous Thing: Mitigating Membership Inference
        Attacks by Enforcing Less Confident Prediction", NDSS 2024: the output modification. Its
        other half, training with labels of high entropy, is none of a release's; without it the
        scores of random inputs may be as sure as others. Random inputs are drawn once, and each
        answer takes one of them.
    """

    state_type = RandomScores
    training = RandomInputs
    fitted_to = "the classifier"

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: RandomInputs,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Ask the classifier about random inputs of the auxiliary images' shape.

        Args:
            training_data: Its target and auxiliary images.
            settings: Options of the random inputs.
            generator: On the CPU; gives the inputs.
            report: Called once.

        Returns:
            The scores, and the mean of their largest probabilities.

        Raises:
            InvalidOptionError: The target is not at hand.
        """
        if training_data.target is None:
            raise InvalidOptionError(
                "HAMP asks the classifier about random inputs, but only answers are at hand. Pass "
                "the classifier itself, or use another defense."
            )
        like = training_data.auxiliary_images
        inputs = torch.rand(settings.inputs, *like.shape[1:], generator=generator).to(like)
        target = training_data.target.eval()
        with torch.no_grad():
            logits = torch.cat([target(part) for part in inputs.split(512)])
        scores = log_probabilities(logits).sort(dim=-1, descending=True).values
        state = RandomScores(scores.shape[-1], len(scores)).to(scores.device)
        state.scores.copy_(scores)
        report(1.0)
        return state, {"mean_confidence": float(scores[:, 0].exp().mean())}

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` log probabilities of random inputs in the clean order."""
        scores = cast("Tensor", self.state.scores)
        drawn = torch.randint(len(scores), (count, *logits.shape[:-1]), generator=self.generator)
        ranked = scores[drawn.to(scores.device)]
        order = logits.argsort(dim=-1, descending=True, stable=True).expand(ranked.shape)
        return torch.empty_like(ranked).scatter(-1, order, ranked)
