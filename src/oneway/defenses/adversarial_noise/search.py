"""Where the search for noise starts, and which way each step goes.

The family of adversarial examples, as the paper's background tells it, differs in these two
answers only; label, budget and update are the same for all, and the defense sees to them. The
fast gradient sign method of Goodfellow et al. is plain sign steps with ``steps=1``.
"""

import hashlib
import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_above
from oneway.errors import InvalidOptionError, UnknownNameError

SEARCHES = ("sign", "random-start", "keyed-start", "momentum")

OWNERS = {"start_radius": ("random-start", "keyed-start"), "decay": ("momentum",)}
"""Which searches each option belongs to."""

DECIMALS = 2
"""What log probabilities are rounded to before they decide a keyed start: scores differ in their
last digits from batch to batch."""

LOWEST_LOG = -100.0
"""Log probabilities below this, in nats, decide nothing."""


class NoiseSearch(Protocol):
    """Two functions of tensors; what a search remembers is passed in and out.

    Attributes:
        deterministic: The same rows give the same noise, always.
    """

    @property
    def deterministic(self) -> bool: ...  # noqa: D102  described in the class

    def start(self, clean: Tensor) -> Tensor | None:
        """Propose noise to start from; the caller keeps label and budget.

        Args:
            clean: ``(N, K)`` clean scores, float32 or float64, in nats. Not modified.

        Returns:
            ``(N, K)`` noise in nats, of the same type and device; None: start from ``clean``.
        """
        ...

    def direction(self, gradients: Tensor, gathered: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Say which way to step. No row depends on any other row.

        Args:
            gradients: ``(N, K)`` floating, of each row's error in its scores so far.
            gathered: What the step before returned, None at the first one.

        Returns:
            ``(N, K)`` direction, each entry in ``[-1, 1]``, which the caller multiplies by the
            step size; and what the next step shall be given.
        """
        ...


class SignSteps:
    """Steps along the gradient's sign, from the clean scores: what the paper does.

    With one step it is the fast gradient sign method of Goodfellow, Shlens & Szegedy,
    "Explaining and Harnessing Adversarial Examples", ICLR 2015. With several it is Algorithm 2
    of Wen, Yiu & Hui, IEEE CSR 2021.
    """

    deterministic = True

    def start(self, clean: Tensor) -> Tensor | None:  # noqa: ARG002  part of the contract
        """Start from the clean scores."""
        return None

    def direction(
        self,
        gradients: Tensor,
        gathered: Tensor | None,  # noqa: ARG002  part of the contract
    ) -> tuple[Tensor, Tensor | None]:
        """Step along the sign of the latest gradient; where it is 0, not at all."""
        return gradients.sign(), None


class RandomStart(SignSteps):
    """Sign steps from a random point around the clean scores.

    Projected gradient descent of Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", ICLR 2018. Draws are made row after row,
    so that a batch cut into several is given the same ones.
    """

    deterministic = False

    def __init__(self, radius: float, generator: torch.Generator) -> None:
        """Start within ``radius``.

        Args:
            radius: Most that an entry may move at the start, in nats, above 0.
            generator: On the CPU; gives the starts, and moves on with each.

        Raises:
            InvalidOptionError: ``radius`` is not positive.
        """
        check_above("start_radius", radius, 0)
        self.radius, self.generator = radius, generator

    def start(self, clean: Tensor) -> Tensor:
        """Draw each entry uniformly from ``[-radius, radius]``."""
        uniform = torch.rand(clean.shape, generator=self.generator, dtype=torch.float64)
        return ((2 * uniform - 1) * self.radius).to(clean)


class KeyedStart(SignSteps):
    """Sign steps from a point around the clean scores that they decide, with a secret key.

    The same query starts from the same point, always, so that nothing is gained by asking again;
    and nobody without the key knows where. Rows whose log probabilities round to the same
    multiples of 0.01 share their start.
    """

    deterministic = True

    def __init__(self, radius: float, generator: torch.Generator) -> None:
        """Start within ``radius``.

        Args:
            radius: Most that an entry may move at the start, in nats, above 0.
            generator: On the CPU; gives the key, here and not later.

        Raises:
            InvalidOptionError: ``radius`` is not positive.
        """
        check_above("start_radius", radius, 0)
        words = torch.randint(2**62, (4,), generator=generator)
        self.radius, self._key = radius, words.numpy().tobytes()

    def start(self, clean: Tensor) -> Tensor:
        """Return noise that is uniform in ``[-radius, radius]`` to whoever lacks the key."""
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


class Momentum:
    """Steps along the sign of a decaying sum of gradients, each scaled to an L1 norm of 1.

    The momentum iterative method (MI-FGSM) of Dong, Liao, Pang, Su, Zhu, Hu & Li, "Boosting
    Adversarial Attacks with Momentum", CVPR 2018, Equations 6 and 7. What is gathered is
    float64.
    """

    deterministic = True

    def __init__(self, decay: float = 1.0) -> None:
        """Set how much of the sum is kept.

        Args:
            decay: Factor of the sum so far (mu), at least 0. 0 gives plain sign steps. Dong et
                al.: 1.0.

        Raises:
            InvalidOptionError: ``decay`` is negative or not finite.
        """
        check_above("decay", decay, -math.inf)
        if decay < 0:
            raise InvalidOptionError(f"decay must be at least 0, but got {decay}.")
        self.decay = decay

    def start(self, clean: Tensor) -> Tensor | None:  # noqa: ARG002  part of the contract
        """Start from the clean scores."""
        return None

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
) -> NoiseSearch:
    """Build a search from its name and options.

    Args:
        name: One of ``"sign"``, ``"random-start"``, ``"keyed-start"`` and ``"momentum"``.
        step_size: Nats per step, above 0: the default of ``start_radius``.
        start_radius: See :class:`RandomStart` and :class:`KeyedStart`. None: ``step_size``, or
            another search.
        decay: See :class:`Momentum`. None: 1.0, or no momentum.
        generator: On the CPU. Needed by ``"random-start"`` and ``"keyed-start"``; the others
            ignore it.

    Raises:
        UnknownNameError: There is no search of that name.
        InvalidOptionError: An option is outside its range or belongs to another search, or the
            generator is missing, or not a generator on the CPU.
    """
    if name not in SEARCHES:
        raise UnknownNameError("search", str(name), SEARCHES)
    for option, value in {"start_radius": start_radius, "decay": decay}.items():
        if value is not None and name not in OWNERS[option]:
            owners = " or ".join(map(repr, OWNERS[option]))
            raise InvalidOptionError(
                f"{option} is an option of search={owners}, but the search is "
                f"{name!r}. Leave {option} out, or choose that search."
            )
    if generator is not None and (
        not isinstance(generator, torch.Generator) or generator.device.type != "cpu"
    ):
        raise InvalidOptionError(
            "generator must be a torch.Generator on the CPU; noise is drawn there and then moved."
        )
    if name == "momentum":
        return Momentum() if decay is None else Momentum(decay)
    if name == "sign":
        return SignSteps()
    if generator is None:
        raise InvalidOptionError(
            f"search={name!r} draws its start, or the key of it, but generator is None. Pass a "
            "torch.Generator, seeded so that no client can guess its draws."
        )
    kind = RandomStart if name == "random-start" else KeyedStart
    return kind(step_size if start_radius is None else start_radius, generator)
