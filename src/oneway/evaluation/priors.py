"""Generative priors of an evaluation: the store keeps each, so that none is trained twice."""

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from oneway.errors import InvalidOptionError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import (
    AdversarialPrior,
    AdversarialPriorSettings,
    AdversarialPriorTraining,
    Autoencoder,
    AutoencoderSettings,
    train_autoencoder,
)

STAGE = 100
"""Steps of an adversarial prior after which its state is stored."""


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

    def adversarial(
        self, images: Tensor, settings: AdversarialPriorSettings, steps: int
    ) -> AdversarialPrior:
        """Return a trained adversarial prior; an interrupted training goes on where it was.

        Args:
            images: ``(N, C, H, W)`` auxiliary images of 32x32 or 64x64.
            settings: Size and speed.
            steps: Steps of the generator, a multiple of 100.

        Raises:
            InvalidOptionError: ``steps`` is no such multiple, or the images are no such squares.
        """
        if steps % STAGE:
            raise InvalidOptionError(
                f"steps must be a multiple of {STAGE}, after which a state is stored, but got "
                f"{steps}."
            )
        spec = {"seed": self.seed, "training": dataclasses.asdict(settings)}
        spec["data"] = fingerprint(images)
        device = images.device

        def begin() -> AdversarialPriorTraining:
            network = AdversarialPrior(images.shape[1:], width=settings.width).to(device)
            return AdversarialPriorTraining(network, settings)

        training = Stream(self.seed, "adversarial prior").call(begin, device)
        for done in range(0, steps, STAGE):

            def go_on(done: int = done) -> Mapping[str, Tensor]:
                training.advance(
                    images,
                    STAGE,
                    Stream(self.seed, f"adversarial prior, step {done}").generator(),
                    lambda share: self.report((done + share * STAGE) / steps),
                )
                return training.state()

            training.load(self.store.tensors("adversarial-prior", {**spec, "from": done}, go_on))
        self.report(1.0)
        return training.network.eval()
