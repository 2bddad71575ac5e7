"""Where the search for noise starts, and which way each step goes.

The adversarial examples of the paper's background differ in these two answers only; label, budget
and update are the same for all, and the defense sees to them. The fast gradient sign method of
Goodfellow et al. is plain sign steps with ``steps=1``.
"""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_generator
from oneway.errors import InvalidOptionError

Search = Literal["sign", "random-start", "keyed-start", "momentum"]


DRAWN = ("random-start", "keyed-start")
"""Searches that draw from a generator."""

OWNERS = {"start_radius": DRAWN, "decay": ("momentum",)}
"""Which searches each option belongs to."""

DECIMALS = 2
"""Decimals of the log probabilities that decide a keyed start: scores differ in their last digits
from batch to batch."""

LOWEST_LOG = -100.0
"""Log probabilities below this, in nats, decide nothing."""


class SignSteps:
    """Steps along the gradient's sign, from the clean scores: what the paper does.

    With one step it is the fast gradient sign method of Goodfellow, Shlens & Szegedy,
    "Explaining and Harnessing Adversarial Examples", ICLR 2015. With several it is Algorithm 2
    of Wen, Yiu & Hui, IEEE CSR 2021.

    A search keeps no state between calls: what a step gathers is passed in and out.

    Attributes:
        deterministic: The same rows always have the same noise.
    """

    deterministic = True

    def start(self, clean: Tensor) -> Tensor | None:  # noqa: ARG002
        """Propose noise to start from; the caller keeps label and budget.

        Args:
            clean: ``(N, K)`` clean scores, float32 or float64, in nats. Not modified.

        Returns:
            ``(N, K)`` noise in nats, of the same type and device; None: start from ``clean``.
        """
        return None

    def direction(
        self,
        gradients: Tensor,
        gathered: Tensor | None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return which way to step. No row depends on any other row.

        Args:
            gradients: ``(N, K)`` floating, of each row's error in its scores so far.
            gathered: Second return value of the step before; None at the first step.

        Returns:
            ``(N, K)`` direction, each entry in ``[-1, 1]``, which the caller multiplies by the
            step size; and what the next call gets as ``gathered``.
        """
        return gradients.sign(), None


class RandomStart(SignSteps):
    """Sign steps from a random point around the clean scores.

    Projected gradient descent of Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", ICLR 2018. Draws are made row after row,
    so that a batch that is cut into several has the same draws.
    """

    deterministic = False

    def __init__(self, radius: float, generator: torch.Generator) -> None:
        """Start within ``radius``.

        Args:
            radius: Most that an entry may move at the start, in nats, above 0.
            generator: On the CPU; gives the starts, and moves on with each.
        """
        self.radius, self.generator = radius, generator

    def start(self, clean: Tensor) -> Tensor:
        """Draw each entry uniformly from ``[-radius, radius]``."""
        uniform = torch.rand(clean.shape, generator=self.generator, dtype=torch.float64)
        return ((2 * uniform - 1) * self.radius).to(clean)


class KeyedStart(SignSteps):
    """Sign steps from a point around the clean scores that they decide, with a secret key.

    The same query always starts from the same point, so that a client gains nothing by asking
    again; and nobody without the key knows where. Rows whose log probabilities round to the same
    multiples of 0.01 share their start.
    """

    def __init__(self, radius: float, generator: torch.Generator) -> None:
        """Start within ``radius``.

        Args:
            radius: Most that an entry may move at the start, in nats, above 0.
            generator: On the CPU; gives the key, here and not later.
        """
        words = torch.randint(2**62, (4,), generator=generator)
        self.radius, self._key = radius, words.numpy().tobytes()

    def start(self, clean: Tensor) -> Tensor:
        """Return noise that is uniform in ``[-radius, radius]`` to anyone who lacks the key."""
        logs = clean.detach().double().log_softmax(-1).clamp_min(LOWEST_LOG)
        # Adding 0 turns -0 into 0, which has other bytes.
        rounded = (logs.round(decimals=DECIMALS) + 0.0).cpu().numpy()
        drawn = [
            hashlib.shake_256(self._key + row.tobytes()).digest(8 * len(row)) for row in rounded
        ]
        words = np.frombuffer(b"".join(drawn), dtype="<u8").reshape(rounded.shape)
        # The upper 53 bits, as many as float64 holds.
        uniform = torch.from_numpy((words >> np.uint64(11)).astype(np.float64)) / 2**53
        return ((2 * uniform - 1) * self.radius).to(clean)


class Momentum(SignSteps):
    """Steps along the sign of a decaying sum of gradients, each scaled to an L1 norm of 1.

    The momentum iterative method (MI-FGSM) of Dong, Liao, Pang, Su, Zhu, Hu & Li, "Boosting
    Adversarial Attacks with Momentum", CVPR 2018, Equations 6 and 7. The sum is float64.
    """

    def __init__(self, decay: float = 1.0) -> None:
        """Set how much of the sum is kept.

        Args:
            decay: Factor of the sum so far (mu), at least 0. 0 gives plain sign steps. Dong et
                al.: 1.0.
        """
        self.decay = decay

    def direction(self, gradients: Tensor, gathered: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add each row's gradient to its sum; a gradient of 0 adds nothing."""
        # A row's largest entry goes first, so that no norm overflows or vanishes.
        wide = gradients.double()
        largest = wide.abs().amax(-1, keepdim=True)
        unit = wide / torch.where(largest > 0, largest, 1)
        unit = unit / unit.abs().sum(-1, keepdim=True).clamp_min(1)
        gathered = unit if gathered is None else self.decay * gathered + unit
        return gathered.sign(), gathered


def noise_search(
    name: str,
    *,
    step_size: float,
    start_radius: float | None = None,
    decay: float | None = None,
    generator: torch.Generator | None = None,
) -> SignSteps:
    """Build a search from its name and options, whose ranges were checked.

    Args:
        name: Name of the search.
        step_size: Nats per step, above 0: the default of ``start_radius``.
        start_radius: See :class:`RandomStart` and :class:`KeyedStart`. None: ``step_size``, or
            another search.
        decay: See :class:`Momentum`. None: 1.0, or no momentum.
        generator: On the CPU. Needed by searches that draw; the others ignore it.

    Raises:
        InvalidOptionError: An option belongs to another search, or the generator is missing, or
            not a generator on the CPU.
    """
    for option, value in {"start_radius": start_radius, "decay": decay}.items():
        if value is not None and name not in OWNERS[option]:
            owners = " or ".join(map(repr, OWNERS[option]))
            raise InvalidOptionError(
                f"{option} is an option of search={owners}, but the search is "
                f"{name!r}. Leave {option} out, or choose that search."
            )
    if name == "momentum":
        return Momentum() if decay is None else Momentum(decay)
    if name == "sign":
        return SignSteps()
    check_generator(generator, f"search={name!r} has a start that is")
    assert generator is not None  # noqa: S101  narrows the type; refused above
    kind = RandomStart if name == "random-start" else KeyedStart
    return kind(step_size if start_radius is None else start_radius, generator)
