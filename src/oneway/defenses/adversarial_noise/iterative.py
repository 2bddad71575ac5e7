"""Algorithm 2 and Equation 3: the paper's defense, composed from single steps."""

import copy
import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from oneway.defenses.adversarial_noise.noise_vector import (
    check_norm,
    part_from_ties,
    project_to_budget,
    step_noise,
)
from oneway.defenses.adversarial_noise.search import Search, SignSteps, noise_search
from oneway.defenses.base import BaseDefense
from oneway.defenses.label_modifier import lift_label
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from oneway.options import injected, option

SIDES: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2}
"""Number of axes after the channels in what a BatchNorm reads from an unflattened row."""


def frozen_copy(network: nn.Module) -> nn.Module:
    """Copy a network for inference: no parameter gradients, eval mode, BatchNorm folded.

    A BatchNorm is folded only where that is known to be right: in an ``nn.Sequential``, directly
    after a convolution, or after a linear layer whose output an ``nn.Unflatten`` reads as maps.
    Elsewhere it stays. The function computed is the same but for rounding.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    return copied


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for position, name in enumerate(names):
        norm = sequence._modules[name]
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.affine:
            continue
        before = [sequence._modules[earlier] for earlier in names[:position]]
        match before:
            case [*_, nn.modules.conv._ConvNd() as layer]:
                source = names[position - 1]
                transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
                if transposed and layer.groups > 1:
                    continue
                fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=transposed)
            case [*_, nn.Linear() as layer, nn.Unflatten(unflattened_size=(int(), *sides))] if (
                SIDES.get(type(norm)) == len(sides) and min(sides) > 0
            ):
                # The numbers of one channel stand together in the linear layer's output.
                source = names[position - 2]
                fused = fuse_linear_bn_eval(layer, _repeated(norm, math.prod(sides)))
            case _:
                continue
        sequence._modules[source] = fused.requires_grad_(False)
        sequence._modules[name] = nn.Identity()


def _repeated(norm: nn.modules.batchnorm._BatchNorm, spread: int) -> nn.BatchNorm1d:
    """Return a BatchNorm over single numbers that does what ``norm`` does to maps of them."""
    wide = nn.BatchNorm1d(norm.num_features * spread, eps=norm.eps).eval()
    state = {
        key: value.repeat_interleave(spread) if value.ndim else value
        for key, value in norm.state_dict().items()
    }
    wide.load_state_dict(state)
    return wide.to(norm.weight)


CPU_ROWS = 64
"""Rows that are searched at once on a CPU."""

GPU_ROWS = 512
"""Rows that are searched at once elsewhere, so that the patches of a large set fit in memory."""

AHEAD_ROWS = 16
"""Gradients that are computed at once where fewer rows come, on points that may be passed next."""

State = tuple[Tensor, Tensor, Tensor]
"""Where the next step starts and what it is measured from, and the noise: each ``(N, K)``."""


class NoiseDefense(BaseDefense):
    """A defense that adds noise to raise an inverter's error about given images.

    The inverter is copied: its parameters are frozen, dropout is off, BatchNorm uses its running
    statistics and is folded into its neighbours. Later changes of the original have no effect.
    """

    is_finished = True
    update = "project"

    inverter: nn.Module = injected(
        "The defender's surrogate: ``(N, K)`` confidences to ``(N, ...)`` images, such as "
        ":class:`oneway.Inverter`.",
        kw_only=False,
    )
    step_size: float = option(
        "Nats per step (eta). The paper: 0.1 for MNIST, 0.4 for faces.", above=0, is_strength=True
    )
    steps: int = option(
        "Number of steps. The paper: 10. With one plain sign step it is the fast gradient sign "
        "method (Goodfellow et al., ICLR 2015).",
        default=10,
    )
    budget: float | None = option(
        "Most that a row's noise may measure (epsilon), in nats. None: unbounded.",
        default=None,
        above=0,
    )
    norm: float = option(
        "p of the budget's norm: 1, 2 or ``math.inf``.", default=1, check=check_norm
    )
    margin: float = option(
        "Least lead of the label, in nats, before the budget is applied.", default=1e-3, above=0
    )
    start_radius: float | None = option(
        'Of ``"random-start"`` and ``"keyed-start"``: most that an entry is moved at the start, '
        "in nats. None: ``step_size``.",
        default=None,
        above=0,
    )
    generator: Generator | None = injected(
        'On the CPU. ``"random-start"`` draws from it in each call, a draw per score; '
        '``"keyed-start"`` draws its key once; other searches ignore it.',
        default=None,
    )

    def __post_init__(self) -> None:
        """Copy the inverter.

        Raises:
            InvalidOptionError: An option is outside its range or belongs to another search, a
                drawn start has no generator, or the inverter's rows depend on each other.
            UnknownNameError: A name is none of those to choose from.
        """
        if not isinstance(self.inverter, nn.Module):
            raise InvalidOptionError(
                f"inverter must be a torch.nn.Module, but got {type(self.inverter).__name__}."
            )
        super().__post_init__()
        self._search = self._chosen_search()
        self.deterministic = self._search.deterministic
        for module in self.inverter.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise InvalidOptionError(
                    "the inverter has a BatchNorm without running statistics, so that a query's "
                    "noise would depend on the batch. Train it with track_running_stats=True."
                )
        self.inverter = frozen_copy(self.inverter)
        parameter = next(self.inverter.parameters(), None)
        self._dtype = torch.float32 if parameter is None else parameter.dtype
        self._closed_form = _closed_form(self.inverter)

    def _chosen_search(self) -> SignSteps:
        """Return the search that the options name."""
        raise NotImplementedError

    def check_shape(self, logits: Tensor) -> None:
        """Refuse anything but rows of scores.

        Raises:
            InvalidTensorError: ``logits`` are not of shape ``(N, K)``.
        """
        super().check_shape(logits)
        if logits.ndim != 2:
            raise InvalidTensorError(
                f"logits must have shape (N, K), but got {tuple(logits.shape)}. "
                "Pass `logits.unsqueeze(0)` for a single row."
            )

    def add_noise(self, logits: Tensor, images: Tensor) -> Tensor:
        """Add noise that raises the inverter's error about images.

        Args:
            logits: ``(N, K)`` checked clean scores of any floating type, in nats.
            images: ``(N, ...)`` what to drive the inverter away from, in the scale that it
                reconstructs.

        Returns:
            ``(N, K)`` noisy logits of the same type and device, label on top. Rows do not depend
            on each other; gradients agree between batches of different size to a relative 1e-4,
            so that an entry's sign may differ where its gradient is that close to 0.

        Raises:
            DefenseFailedError: The inverter's gradient is not finite, there is none, or it
                reconstructs another shape than the images have.
        """
        # A closed form needs no automatic gradient, and is faster without.
        with torch.inference_mode(self._closed_form is not None):
            # Steps of a tenth vanish in half precision; noise is computed in float32.
            wide = logits.dtype in (torch.float32, torch.float64)
            clean, queries = logits if wide else logits.float(), images.to(self._dtype)
            noisy = self._in_parts(clean, queries).to(logits.dtype)
        released = noisy.clone()
        if released.dtype != clean.dtype:
            released = lift_label(released, logits.argmax(-1), 0)
        if not torch.isfinite(released).all():
            raise DefenseFailedError(
                f"the noisy logits do not fit {logits.dtype}, so nothing is released. "
                "Scale the logits, or pass them in a wider type."
            )
        return released

    def _in_parts(self, clean: Tensor, images: Tensor) -> Tensor:
        """Return ``(N, K)`` noisy scores of any number of checked rows."""
        # On a CPU the maps of a few rows stay in its cache through all steps.
        rows = CPU_ROWS if clean.device.type == "cpu" else GPU_ROWS
        parts = zip(clean.split(rows), images.split(rows), strict=True)
        return torch.cat([self._noisy(part, truth) for part, truth in parts])

    def _noisy(self, clean: Tensor, images: Tensor) -> Tensor:
        """Run Algorithm 2, or Equation 3, on rows that have been checked.

        Rows mostly step the same way many times. With few rows the gradients at the next points
        on that way are computed together, and those after the first turn are thrown away: the
        points are the listing's, in a fraction of the passes.
        """
        labels = clean.argmax(-1)
        images = rows_last_in_memory(images)
        state = clean, clean, torch.zeros_like(clean)
        start = self._search.start(clean)
        if start is not None:
            noise = self._bounded(clean, clean, start, labels)
            state = clean + noise, clean, noise
        # Checked once at the end, not at each step: on a GPU every look is a wait.
        finite = torch.ones((), dtype=torch.bool, device=clean.device)
        direction: Tensor | None = None
        gathered: Tensor | None = None
        left, ahead = self.steps, max(1, AHEAD_ROWS // max(1, len(clean)))
        while left:
            states = [state]
            while direction is not None and len(states) < min(left, ahead):
                states.append(self._stepped(clean, states[-1], direction, labels))
            passed = 0
            for gradients in self._at_once(states, images):
                passed += 1
                finite = finite & torch.isfinite(gradients).all()
                expected = direction
                direction, gathered = self._search.direction(gradients, gathered)
                if passed < len(states) and not torch.equal(direction, cast("Tensor", expected)):
                    ahead = passed  # few turns come alone
                    break
            left -= passed
            state = self._stepped(clean, states[passed - 1], cast("Tensor", direction), labels)
        check_finite_gradients(finite)
        return clean + part_from_ties(clean, state[2], labels)

    def _at_once(self, states: list[State], images: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients at each state, ``(N, K)`` each."""
        if len(states) == 1:
            return (self.gradients(states[0][0], images),)
        points = torch.cat([current for current, _, _ in states])
        same = images.repeat(len(states), *[1] * (images.ndim - 1))
        return self.gradients(points, same).chunk(len(states))

    def _stepped(self, clean: Tensor, state: State, direction: Tensor, labels: Tensor) -> State:
        """Take one step in ``direction``, of entries in ``[-1, 1]``."""
        current, before, _ = state
        step = self.step_size * direction.to(current.dtype)
        if self.update == "project":
            noise = self._bounded(clean, current, step, labels)
            return clean + noise, clean, noise
        # A random start belongs to the first step, which is scaled as a whole.
        current = self._rescaled_step(before, current + step, labels)
        return current, current, current - clean

    def _bounded(self, clean: Tensor, current: Tensor, step: Tensor, labels: Tensor) -> Tensor:
        """Return the noise after ``step``, within the budget, label kept."""
        return step_noise(
            clean, current, step, labels, budget=self.budget, norm=self.norm, margin=self.margin
        )

    def _rescaled_step(self, before: Tensor, stepped: Tensor, labels: Tensor) -> Tensor:
        """Take one step of Equation 3: noise of size ``budget``, label kept."""
        assert self.budget is not None  # noqa: S101  narrows the type; refused in __init__
        noise = (lift_label(stepped, labels, self.margin) - before).double()
        size = torch.linalg.vector_norm(noise, ord=self.norm, dim=-1, keepdim=True)
        noise = torch.where(size > 0, noise * (self.budget / size), noise).to(before.dtype)
        noise = lift_label(before + noise, labels, self.margin) - before
        return before + project_to_budget(noise, self.budget, self.norm)

    def gradients(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return each row's gradient of its own reconstruction error, ``(N, K)``.

        An inverter that has ``error_gradients(logits, images)`` computes them; any other is
        differentiated automatically.

        Args:
            logits: ``(N, K)`` scores with the noise so far.
            images: ``(N, ...)`` the queries, in the inverter's type.

        Raises:
            DefenseFailedError: The inverter reconstructs another shape than the images have.
        """
        if self._closed_form is not None:
            try:
                return self._closed_form(logits, images)
            except InvalidTensorError as error:
                raise DefenseFailedError(f"nothing is released: {error}") from error
        with torch.enable_grad():
            variable = logits.detach().requires_grad_()
            reconstructions = self.inverter(variable.softmax(-1).to(self._dtype))
            _check_shape(reconstructions, images)
            # A sum over rows, so that no row's gradient is scaled by how many there are.
            loss = (reconstructions - images).square().flatten(1).mean(-1).sum()
            if not loss.requires_grad:
                raise DefenseFailedError(
                    "the inverter's output does not depend on the scores in a way that can be "
                    "differentiated, so there is no noise to add and nothing is released."
                )
            (gradients,) = torch.autograd.grad(loss, variable)
        return gradients


class AdversarialNoise(NoiseDefense):
    """Noise that makes the scores an adversarial example for inverters.

    Against an inverter trained on clean scores the reconstruction error grows severalfold. An
    attacker who retrains on the released scores undoes most of it: measure before you rely on it.

    With a random start the same query has another answer each time: a client who asks again
    learns more, and may average the noise.
    """

    requires_input = True

    update: Literal["project", "rescale"] = option(
        '``"project"``, Algorithms 1 and 2: all noise so far is scaled down to the budget where '
        'it exceeds it. ``"rescale"``, Equation 3: each step\'s noise is scaled to measure '
        "``budget`` and added up, so that the sum may reach ``steps * budget``. (As printed, a "
        "step scaled up may break the label; then the label is lifted and the step scaled down "
        "again.)",
        default="project",
    )
    search: Search = option(
        "``\"sign\"``, the paper's: each step goes along the gradient's sign. "
        '``"random-start"``, projected gradient descent (Madry et al., ICLR 2018): the same from '
        'a random point, which keeps label and budget; with ``"rescale"`` it is part of the first '
        'step. ``"keyed-start"``: the same, but the point is decided by the row\'s scores and a '
        'secret key. ``"momentum"`` (Dong et al., CVPR 2018): along the sign of a decaying sum of '
        "gradients.",
        default="sign",
    )
    decay: float | None = option(
        'Of ``"momentum"``: factor of the sum so far (mu); at 0, plain sign steps. None: 1.0.',
        default=None,
        least=0,
    )

    coarse_steps: int | None = option(
        "Approximate, and several times faster: this many steps, at most ``steps``, as far "
        "together as all of them, and a last gradient where they end. Rows whose gradients' signs "
        "were not the same in all of these get all steps; for the others nothing proves what lies "
        'between. Of ``search="sign"`` with ``update="project"``. None: all steps for all rows.',
        default=None,
        least=1,
    )

    def __post_init__(self) -> None:
        """Copy the inverter.

        Raises:
            InvalidOptionError: ``"rescale"`` has no budget; ``coarse_steps`` exceeds ``steps`` or
                belongs to another search or update; or see :class:`NoiseDefense`.
        """
        super().__post_init__()
        if self.update == "rescale" and self.budget is None:
            raise InvalidOptionError(
                "update='rescale' (Equation 3) scales every step to the budget, "
                "but budget is None. Pass one, or use update='project'."
            )
        if self.coarse_steps is None:
            return
        if self.coarse_steps > self.steps or (self.search, self.update) != ("sign", "project"):
            raise InvalidOptionError(
                "coarse_steps must be at most steps, with search='sign' and update='project', "
                f"but got coarse_steps={self.coarse_steps}, steps={self.steps}, "
                f"search={self.search!r} and update={self.update!r}. Leave coarse_steps out."
            )

    def _in_parts(self, clean: Tensor, images: Tensor) -> Tensor:
        if self.coarse_steps is None:
            return super()._in_parts(clean, images)
        rows = CPU_ROWS if clean.device.type == "cpu" else GPU_ROWS
        parts = zip(clean.split(rows), images.split(rows), strict=True)
        coarse = [self._coarse(part, truth, self.coarse_steps) for part, truth in parts]
        noisy = torch.cat([part for part, _ in coarse])
        turned = torch.cat([part for _, part in coarse])
        if turned.any():
            noisy[turned] = super()._in_parts(clean[turned], images[turned])
        return noisy

    def _coarse(self, clean: Tensor, images: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return scores after few large steps, and which rows' gradients turned on the way."""
        labels = clean.argmax(-1)
        images = rows_last_in_memory(images)
        length = self.step_size * (self.steps / steps)
        noise = torch.zeros_like(clean)
        gradients = self.gradients(clean, images)
        first, finite = gradients.sign(), torch.isfinite(gradients).all()
        signs, turned = first, torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(steps):
            noise = self._bounded(clean, clean + noise, length * signs.to(clean.dtype), labels)
            gradients = self.gradients(clean + noise, images)
            signs, finite = gradients.sign(), finite & torch.isfinite(gradients).all()
            turned = turned | (signs != first).any(-1)
        check_finite_gradients(finite)
        return clean + part_from_ties(clean, noise, labels), turned

    def _chosen_search(self) -> SignSteps:
        return noise_search(
            self.search,
            step_size=self.step_size,
            start_radius=self.start_radius,
            decay=self.decay,
            generator=self.generator,
        )

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Drive the inverter away from the queries; see ``NoiseDefense.add_noise``."""
        assert images is not None  # noqa: S101  narrows the type; the base class refuses None
        return self.add_noise(logits, images)


def rows_last_in_memory(images: Tensor) -> Tensor:
    """Return the same ``(N, ...)`` images, laid out as a closed form reads them at each step."""
    return images.movedim(0, -1).contiguous().movedim(-1, 0)


def check_finite_gradients(finite: Tensor) -> None:
    """Refuse to release after a gradient that is not finite.

    Raises:
        DefenseFailedError: ``finite`` is False.
    """
    if not finite:
        raise DefenseFailedError(
            "the inverter's gradient is not finite, so there is no noise to add and nothing "
            "is released. Check that the inverter was trained and takes these scores."
        )


def _closed_form(inverter: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the inverter's ``error_gradients``, if it is of the class that says ``forward``.

    A subclass that overrides ``forward`` alone inherits the gradient of another function.
    """
    for kind in type(inverter).__mro__:
        if "error_gradients" in vars(kind):
            return cast("Callable[[Tensor, Tensor], Tensor]", inverter.error_gradients)
        if "forward" in vars(kind):
            return None
    return None


def _check_shape(reconstructions: Tensor, images: Tensor) -> None:
    if reconstructions.shape != images.shape:
        raise DefenseFailedError(
            f"the inverter reconstructs images of shape {tuple(reconstructions.shape)}, but the "
            f"queries have {tuple(images.shape)}. Train it on images of the target's shape."
        )
