"""Generative priors of an evaluation: the store keeps each, so that none is trained twice."""

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import Autoencoder, AutoencoderSettings, train_autoencoder


@dataclasses.dataclass(frozen=True)
class PriorTrainer:
    """Trains generative priors of auxiliary images.

    Attributes:
        store: Store of trained networks.
        seed: Seed of the experiment.
        settings: Size and training of autoencoders.
        report: Called with the share of a training that is done.
    """

    store: Store
    seed: int
    settings: AutoencoderSettings = dataclasses.field(default_factory=AutoencoderSettings)
    report: Callable[[float], None] = lambda _: None

    def autoencoder(
        self, images: Tensor, confidences: Tensor | None, held_out: Tensor
    ) -> Autoencoder:
        """Return a trained autoencoder, from the store if it has it.

        Args:
            images: ``(N, ...)`` auxiliary inputs.
            confidences: ``(N, K)`` confidences that are the condition; None: no condition.
            held_out: ``(N)`` bool, the rows that select the epoch.
        """
        sizes = {
            "num_classes": 0 if confidences is None else confidences.shape[-1],
            "latents": self.settings.latents,
            "width": self.settings.width,
        }

        def compute() -> Mapping[str, Tensor]:
            network = Autoencoder(images.shape[1:], **sizes).to(images.device)
            train_autoencoder(
                network,
                images,
                confidences,
                held_out,
                settings=self.settings,
                generator=Stream(self.seed, "autoencoder order").generator(),
                on_epoch=self.report,
            )
            return network.state_dict()

        data = fingerprint(images, held_out, *(() if confidences is None else (confidences,)))
        spec = {"seed": self.seed, "training": dataclasses.asdict(self.settings), "data": data}
        state = self.store.tensors(
            "autoencoder",
            spec,
            lambda: Stream(self.seed, "autoencoder").call(compute, images.device),
        )
        network = Autoencoder(images.shape[1:], **sizes, rows=len(state["codes"]))
        network.load_state_dict(state)
        self.report(1.0)
        return network.eval().to(images.device)
