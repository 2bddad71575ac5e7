"""Algorithm 2 and Equation 3: the paper's defense, composed from single steps."""

import copy
import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from oneway.checks import check_count, check_images, check_logits
from oneway.defenses.adversarial_noise.noise_vector import (
    check_options,
    part_from_ties,
    project_to_budget,
    step_noise,
)
from oneway.defenses.adversarial_noise.search import noise_search
from oneway.defenses.label_modifier import lift_label
from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    UnknownNameError,
)

UPDATES = ("project", "rescale")

SIDES: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2}
"""How many axes follow the channels' in what a BatchNorm takes from an unflattened row."""

CPU_ROWS = 64
"""Rows that are searched at once on a CPU."""

GPU_ROWS = 2048
"""Rows that are searched at once elsewhere, so that the maps of a large set fit in memory."""


class AdversarialNoise:
    """Noise that makes the scores an adversarial example for inverters.

    Against an inverter trained on clean scores the reconstruction error grows severalfold. An
    attacker who retrains on the released scores undoes most of it: measure before you rely on it.

    The inverter is copied: its parameters are frozen, dropout is off, BatchNorm uses its running
    statistics and is folded into its neighbours. Later changes of the original have no effect.

    Attributes:
        deterministic: The same query is answered the same, always: unless the search has a
            random start. Then whoever asks again learns more, and may average the noise.
    """

    requires_input = True
    keeps_label = True
    deterministic: bool

    def __init__(
        self,
        inverter: nn.Module,
        *,
        step_size: float,
        steps: int = 10,
        budget: float | None = None,
        norm: float = 1,
        update: Literal["project", "rescale"] = "project",
        margin: float = 1e-3,
        search: Literal["sign", "random-start", "keyed-start", "momentum"] = "sign",
        start_radius: float | None = None,
        decay: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Prepare the defense.

        Args:
            inverter: The defender's surrogate: ``(N, K)`` confidences to ``(N, ...)`` images,
                such as :class:`oneway.Inverter`.
            step_size: Nats per step (eta), above 0. The paper: 0.1 for MNIST, 0.4 for faces.
            steps: How many, at least 1. The paper: 10. With one plain sign step it is the fast
                gradient sign method (Goodfellow et al., ICLR 2015).
            budget: Most that a row's noise may measure (epsilon), in nats. None: unbounded.
            norm: p of the budget's norm, one of 1, 2 and ``math.inf``.
            update: ``"project"``, Algorithms 1 and 2: all noise so far is scaled down to the
                budget where it exceeds it. ``"rescale"``, Equation 3: each step's noise is
                scaled to measure ``budget`` and added up, so that the sum may reach
                ``steps * budget``. (As printed, a step scaled up may break the label; then the
                label is lifted and the step scaled down again.)
            margin: Least lead of the label, in nats, before the budget is applied.
            search: ``"sign"``, the paper's: each step goes along the gradient's sign.
                ``"random-start"``, projected gradient descent (Madry et al., ICLR 2018): the
                same from a random point, which keeps label and budget; with ``"rescale"`` it is
                part of the first step. ``"keyed-start"``: the same, but the point is decided by
                the row's scores and a secret key. ``"momentum"`` (Dong et al., CVPR 2018): along
                the sign of a decaying sum of gradients.
            start_radius: Of ``"random-start"`` and ``"keyed-start"``: each entry starts up to so
                many nats from its clean value, above 0. None: ``step_size``.
            decay: Of ``"momentum"``: factor of the sum so far (mu), at least 0; at 0, plain
                sign steps. None: 1.0.
            generator: On the CPU, for ``"random-start"``, where each call moves it on by a draw
                per score, and for ``"keyed-start"``, which draws its key once; others ignore it.

        Raises:
            InvalidOptionError: An option is outside its range or belongs to another search,
                ``"rescale"`` has no budget, a drawn start no generator, or the inverter's
                rows depend on each other.
            UnknownNameError: There is no such ``update`` or ``search``.
        """
        if not isinstance(inverter, nn.Module):
            raise InvalidOptionError(
                f"inverter must be a torch.nn.Module, but got {type(inverter).__name__}."
            )
        check_options(step_size, budget, norm, margin)
        check_count("steps", steps)
        if update not in UPDATES:
            raise UnknownNameError("update", str(update), UPDATES)
        if update == "rescale" and budget is None:
            raise InvalidOptionError(
                "update='rescale' (Equation 3) scales every step to the budget, "
                "but budget is None. Pass one, or use update='project'."
            )
        self._search = noise_search(
            search,
            step_size=step_size,
            start_radius=start_radius,
            decay=decay,
            generator=generator,
        )
        self.deterministic = self._search.deterministic
        for module in inverter.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise InvalidOptionError(
                    "the inverter has a BatchNorm without running statistics, so that a query's "
                    "noise would depend on the batch. Train it with track_running_stats=True."
                )
        self.inverter = frozen_copy(inverter)
        self.step_size, self.steps, self.budget = step_size, steps, budget
        self.norm, self.update, self.margin, self.search = norm, update, margin, search
        parameter = next(self.inverter.parameters(), None)
        self._dtype = torch.float32 if parameter is None else parameter.dtype
        self._closed_form = _closed_form(self.inverter)

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Add the noise.

        Args:
            logits: ``(N, K)`` clean scores of any floating type, in nats, finite. From an API
                that returns confidences: :func:`oneway.logits_from_confidences`. Not modified.
            images: ``(N, ...)`` the queries, in the scale that the inverter reconstructs.

        Returns:
            ``(N, K)`` noisy logits of the same type and device, without gradient. The clean
            arg max (the lowest index, if they tie) is the only maximum of each row. Rows do not
            depend on each other; gradients agree between batches of different size to a
            relative 1e-4, so that an entry's sign may differ where its gradient is that close
            to 0.

        Raises:
            InvalidTensorError: A tensor breaks the lines above.
            DefenseFailedError: The inverter's gradient is not finite, there is none, or it
                reconstructs another shape than the images have.
        """
        check_logits(logits)
        if logits.ndim != 2:
            raise InvalidTensorError(
                f"logits must have shape (N, K), but got {tuple(logits.shape)}. "
                "Pass `logits.unsqueeze(0)` for a single row."
            )
        if images is None:
            raise InvalidTensorError(
                "images must be given: this defense needs the queries besides their scores. "
                "Use a defense whose `requires_input` is False if they are not at hand."
            )
        check_images(images, rows=len(logits))

        # A caller may be in inference mode, whose tensors take no part in a gradient; a closed
        # form needs none, and is faster there.
        with torch.inference_mode(self._closed_form is not None):
            given = logits.detach().clone()
            # Steps of a tenth vanish in half precision; noise is computed in float32.
            clean = given if given.dtype in (torch.float32, torch.float64) else given.float()
            queries = images.detach().clone().to(self._dtype)
            # On a CPU the maps of a few rows stay in its cache through all steps.
            rows = CPU_ROWS if clean.device.type == "cpu" else GPU_ROWS
            parts = [
                self._noisy(some, truth)
                for some, truth in zip(clean.split(rows), queries.split(rows), strict=True)
            ]
            noisy = torch.cat(parts).to(given.dtype)
        with torch.inference_mode(False):
            released = noisy.clone()
            if released.dtype != clean.dtype:
                released = lift_label(released, logits.argmax(-1), 0)
        if not torch.isfinite(released).all():
            raise DefenseFailedError(
                f"the noisy logits do not fit {given.dtype}, so nothing is released. "
                "Scale the logits, or pass them in a wider type."
            )
        return released

    def _noisy(self, clean: Tensor, images: Tensor) -> Tensor:
        """Run Algorithm 2, or Equation 3, on rows that have been checked."""
        labels = clean.argmax(-1)
        before, current, noise = clean, clean, torch.zeros_like(clean)
        gathered: Tensor | None = None
        start = self._search.start(clean)
        if start is not None:
            noise = self._bounded(clean, clean, start, labels)
            current = clean + noise
        # Checked once at the end, not at each step: on a GPU every look is a wait.
        finite = torch.ones((), dtype=torch.bool, device=clean.device)
        for _ in range(self.steps):
            gradients = self.gradients(current, images)
            finite = finite & torch.isfinite(gradients).all()
            direction, gathered = self._search.direction(gradients, gathered)
            step = self.step_size * direction.to(current.dtype)
            if self.update == "project":
                noise = self._bounded(clean, current, step, labels)
                current = clean + noise
            else:
                # A random start belongs to the first step, which is scaled as a whole.
                current = self._rescaled_step(before, current + step, labels)
                before, noise = current, current - clean
        if not finite:
            raise DefenseFailedError(
                "the inverter's gradient is not finite, so there is no noise to add and nothing "
                "is released. Check that the inverter was trained and takes these scores."
            )
        return clean + part_from_ties(clean, noise, labels)

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

        An inverter that has ``error_gradients(logits, images)`` is asked for them; any other is
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
