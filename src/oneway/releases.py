"""From clean scores to released probabilities: every defense runs through `guarded_release`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from oneway.checks import (
    FLOATING,
    check_confidences,
    check_count,
    check_logits,
    name_of,
)
from oneway.contracts import Defense, LookupDefense, RepeatableDefense
from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    raising_frame,
    where_raised,
)

MOST_DECIMALS = 12
"""Most decimals of a release: beyond, float64 cannot hold the sum of a rounded row exactly."""

Outputs = Literal["logits", "confidences"]
"""What a model's scores are: unbounded logits, in nats, or probabilities."""

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class GuardedRelease:
    """The answer of a defense to one batch, checked.

    Attributes:
        defended_logits: ``(N, K)`` logits from the defense, or ``(R, N, K)`` for R repeats. Only
            the defender may see them.
        confidences: Probabilities of the same shape: all that may leave.
        label_changes: The number of rows whose predicted class differs from the clean one.
    """

    defended_logits: Tensor
    confidences: Tensor
    label_changes: int


# Servers call in inference mode, whose tensors take no part in a gradient.
@torch.inference_mode(False)
@torch.no_grad()
def guarded_release(
    defense: Defense,
    clean_logits: Tensor,
    images: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    decimals: int | None = None,
    repeats: int | None = None,
    batch_size: int | None = None,
) -> GuardedRelease:
    """Apply a defense to clean logits, and release only what keeps the defense's promises.

    The defense gets copies, without gradient and outside inference mode, so it cannot write to
    anything of the caller's. Every path from a defense to a client or an attacker goes through
    this function. Either all rows are released, or an error is raised whose text holds no score.

    Args:
        defense: Changes the logits.
        clean_logits: ``(N, K)`` scores of any floating type, in nats, finite. Not modified.
        images: ``(N, ...)`` the queries that gave the logits. Needed if the defense has
            ``requires_input``, else ignored. Not modified.
        dtype: Type of the released probabilities: see :func:`release`.
        decimals: Decimals of the released probabilities: see :func:`release`.
        repeats: Answer each query this many times, independently, in a leading axis. None: once,
            without that axis. A deterministic defense is asked once; a
            :class:`~oneway.contracts.RepeatableDefense` draws all answers at once.
        batch_size: Most rows that the defense gets at once. None: all.

    Returns:
        The defended logits, in the type and on the device of ``clean_logits``, and the released
        probabilities of type ``dtype``. If the defense has ``keeps_label``, the clean arg max
        (the lowest index, if they tie) is the only maximum of each row.

    Raises:
        InvalidTensorError: The logits or images are not as above, or the defense's own check of
            them failed.
        InvalidOptionError: ``dtype`` or ``decimals`` is outside its range.
        DefenseFailedError: The defense raised, changed a label that it promises to keep, or gave
            anything but finite logits of the same shape, type and device.
    """
    check_logits(clean_logits)
    return release_checked(
        defense,
        clean_logits,
        images,
        dtype=dtype,
        decimals=decimals,
        repeats=repeats,
        batch_size=batch_size,
    )


@torch.inference_mode(False)
@torch.no_grad()
def release_checked(
    defense: Defense,
    clean_logits: Tensor,
    images: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    decimals: int | None = None,
    repeats: int | None = None,
    batch_size: int | None = None,
) -> GuardedRelease:
    """Do what :func:`guarded_release` does, for logits that passed ``check_logits`` already.

    What the defense gives is checked in any case.

    Raises:
        OnewayError: See :func:`guarded_release`.
    """
    check_release_options(dtype, decimals)
    if clean_logits.ndim != 2:
        raise InvalidTensorError(
            f"logits must have shape (N, K), but got {tuple(clean_logits.shape)}. Add the missing "
            "axis for a single query, as by `logits[None]`."
        )
    queries = _queries_for(defense, images, len(clean_logits))
    if repeats is not None:
        check_count("repeats", repeats)
        if defense.deterministic or not isinstance(defense, RepeatableDefense):
            count = 1 if defense.deterministic else repeats
            ask = partial(release_checked, defense, clean_logits, queries, dtype=dtype)
            answers = [ask(decimals=decimals, batch_size=batch_size) for _ in range(count)]
            return GuardedRelease(
                torch.stack([answer.defended_logits for answer in answers]).expand(repeats, -1, -1),
                torch.stack([answer.confidences for answer in answers]).expand(repeats, -1, -1),
                sum(answer.label_changes for answer in answers) * (repeats // count),
            )
    size = batch_size or max(1, len(clean_logits))
    parts = [
        _guarded_batch(
            defense,
            clean_logits[begin : begin + size].detach(),
            None if queries is None else queries[begin : begin + size],
            repeats,
            dtype,
            decimals,
        )
        for begin in range(0, max(1, len(clean_logits)), size)
    ]
    if len(parts) == 1:
        return parts[0]
    return GuardedRelease(
        torch.cat([part.defended_logits for part in parts], dim=-2),
        torch.cat([part.confidences for part in parts], dim=-2),
        sum(part.label_changes for part in parts),
    )


def looked_up_release(
    defense: LookupDefense, clean_logits: Tensor, *, decimals: int | None = None
) -> Tensor:
    """Return the confidences of :func:`release_checked`, without a softmax of defended logits.

    Args:
        defense: Keeps labels, and needs no images.
        clean_logits: ``(N, K)``, which passed ``check_logits``. Not modified.
        decimals: See :func:`release`.

    Returns:
        ``(N, K)`` float32 probabilities, the clean arg max on top.

    Raises:
        DefenseFailedError: See :func:`guarded_release`.
        InvalidTensorError: The defense's own check of the logits failed.
    """
    ask = partial(defense.probabilities, clean_logits.clone(), decimals=decimals)
    released = _caught(ask, defense, len(clean_logits))
    name = type(defense).__name__
    if (
        not isinstance(released, Tensor)
        or (released.dtype, released.shape) != (torch.float32, clean_logits.shape)
        or not torch.equal(released.argmax(-1), clean_logits.argmax(-1))
        or not math.isfinite(released.sum().item())
    ):
        raise DefenseFailedError(
            f"nothing is released: {name} must look up float32 probabilities of shape "
            f"{tuple(clean_logits.shape)} with the clean label on top, but did not."
        )
    return released


def _queries_for(defense: Defense, images: Tensor | None, rows: int) -> Tensor | None:
    """Return the images if the defense needs them, else None."""
    if not defense.requires_input:
        return None
    if images is None:
        raise InvalidTensorError(
            f"images must be given: {type(defense).__name__} needs the queries as well as their "
            "scores. Pass them, or take a defense that does not need them."
        )
    if not isinstance(images, Tensor) or images.ndim < 1 or len(images) != rows:
        got = len(images) if isinstance(images, Tensor) and images.ndim else type(images).__name__
        raise InvalidTensorError(f"images must be one per row of scores, {rows}, but got {got}.")
    return images.detach()


def _guarded_batch(
    defense: Defense,
    clean: Tensor,
    images: Tensor | None,
    draws: int | None,
    dtype: torch.dtype,
    decimals: int | None,
) -> GuardedRelease:
    """Ask a defense once, or for ``draws`` answers at once, and check what it gives."""
    name = type(defense).__name__
    expected = clean if draws is None else clean.expand(draws, -1, -1)
    answer = _answer(defense, clean, images, draws) if len(clean) else expected
    if _kind(answer) != _kind(expected):
        raise DefenseFailedError(
            f"nothing is released: {name} must give logits as {_kind(expected)}, but gave "
            f"{_kind(answer)}."
        )
    try:
        check_logits(answer, f"the logits of {name}")
    except InvalidTensorError as error:
        # The defense is wrong, and not the caller.
        raise DefenseFailedError(f"nothing is released: {error}") from None
    # A copy: a defense may overwrite at its next call what it returned.
    defended = answer.clone()
    confidences = _probabilities(defended, dtype, decimals)
    label_changes = int((confidences.argmax(-1) != clean.argmax(-1)).sum())
    if label_changes and defense.keeps_label:
        raise DefenseFailedError(
            f"{name} promises to keep labels, but changed {label_changes} of "
            f"{confidences[..., 0].numel()}; nothing is released."
        )
    return GuardedRelease(defended, confidences, label_changes)


def _kind(answer: object) -> str:
    """Describe an answer's type, shape and device, and never its values."""
    if not isinstance(answer, Tensor):
        return type(answer).__name__
    sparse = "" if answer.layout is torch.strided else " sparse"
    return f"{name_of(answer.dtype)}{sparse} of shape {tuple(answer.shape)} on {answer.device}"


def _answer(defense: Defense, clean: Tensor, images: Tensor | None, draws: int | None) -> Tensor:
    """Ask a defense with copies."""
    logits, queries = clean.clone(), None if images is None else images.clone()
    ask = partial(defense, logits, queries)
    if draws is not None and isinstance(defense, RepeatableDefense):
        ask = partial(defense.draws, logits, queries, draws)
    return _caught(ask, defense, len(clean))


def _caught(ask: Callable[[], Tensor], defense: Defense, rows: int) -> Tensor:
    """Return an answer; turn whatever is raised into an error that holds no score."""
    refusal: OnewayError
    try:
        return ask()
    except (KeyboardInterrupt, SystemExit):  # the process must stop
        raise
    except BaseException as error:  # noqa: BLE001  raised as an error of oneway
        refusal = _redacted(error, defense, rows)
    # Not within the handler: a log also shows the context, and its text may quote a score.
    raise refusal


def _redacted(error: BaseException, defense: Defense, rows: int) -> OnewayError:
    """Return the error to raise instead: the same if it is about the input and from oneway."""
    if isinstance(error, InvalidTensorError | DefenseFailedError) and _is_from_oneway(error):
        return type(error)(*error.args)
    kind, place = type(error).__name__, where_raised(error)
    refusal = DefenseFailedError(
        f"{type(defense).__name__} raised {kind} ({place}) for {rows} rows; nothing is released. "
        "Its own message is left out, since it may quote a query."
    )
    refusal.raised = kind, place
    return refusal


def _is_from_oneway(error: BaseException) -> bool:
    """Return whether an error and its causes come from this package, whose texts hold no value."""
    links: BaseException | None = error
    while links is not None:
        frame = raising_frame(links)
        if frame is None or PACKAGE not in Path(frame.filename).parents:
            return False
        links = links.__cause__ or links.__context__
    return True


def clean_logits_of(scores: Tensor, outputs: Outputs, name: str = "scores") -> Tensor:
    """Return a model's scores as clean logits, in a type that every defense takes.

    Args:
        scores: ``(..., K)`` floating, ``K >= 2``, finite. Not modified.
        outputs: What the scores are: ``"logits"``, in nats, or ``"confidences"``,
            probabilities. Never guessed from the values.
        name: What messages call the scores.

    Returns:
        Of logits: the same in float64 if they are, else in float32; no copy if the type stays.
        Of confidences: their logarithms in float64, see :func:`logits_from_confidences`.

    Raises:
        InvalidTensorError: The scores are not as above.
    """
    if outputs == "confidences":
        check_confidences(scores, name)
    else:
        check_logits(scores, name)
    return logits_of_checked(scores, outputs)


def logits_of_checked(scores: Tensor, outputs: Outputs) -> Tensor:
    """Do what :func:`clean_logits_of` does, for scores that the caller has checked."""
    if outputs == "confidences":
        return _log_probabilities(scores)
    return scores if scores.dtype == torch.float64 else scores.float()


def check_outputs(outputs: str) -> None:
    """Refuse anything but the two kinds of scores that a model can give.

    Raises:
        InvalidOptionError: ``outputs`` is neither ``"logits"`` nor ``"confidences"``.
    """
    if outputs not in get_args(Outputs):
        raise InvalidOptionError(
            f"outputs must be 'logits' or 'confidences', but got {outputs!r}. Say which the "
            "model gives; it is never guessed from the values."
        )


def check_defense(defense: object) -> None:
    """Refuse what is no :class:`~oneway.contracts.Defense`, and say what it lacks.

    Raises:
        InvalidOptionError: An attribute is missing, or it cannot be called.
    """
    if isinstance(defense, type):
        raise InvalidOptionError(
            f"defense must be a defense, but got the class {defense.__name__}. Pass an instance."
        )
    if isinstance(defense, Defense):
        return
    lacking = [
        name
        for name in ("requires_input", "keeps_label", "deterministic", "__call__")
        if not hasattr(defense, name)
    ]
    raise InvalidOptionError(
        f"defense must be a defense, but got {type(defense).__name__}, which lacks "
        f"{', '.join(lacking)}. Build one with oneway.defenses.build_defense, say."
    )


def check_release_options(dtype: torch.dtype, decimals: int | None) -> None:
    """Refuse a type or a number of decimals that :func:`release` cannot do.

    Raises:
        InvalidOptionError: ``dtype`` is not floating, or ``decimals`` not from 0 to 12 or None.
    """
    if dtype not in FLOATING:
        raise InvalidOptionError(
            f"dtype must be one of {', '.join(map(name_of, FLOATING))}, but got {dtype}."
        )
    if decimals is not None and (
        isinstance(decimals, bool)
        or not isinstance(decimals, int)
        or not 0 <= decimals <= MOST_DECIMALS
    ):
        raise InvalidOptionError(
            f"decimals must be a whole number from 0 to {MOST_DECIMALS}, or None, "
            f"but got {decimals!r}."
        )


def release(
    logits: Tensor, *, dtype: torch.dtype = torch.float32, decimals: int | None = None
) -> Tensor:
    """Turn logits into probabilities for clients; the predicted class stays the unique maximum.

    The softmax is computed in float64, rounded if asked, then cast. The arg max of ``logits`` (the
    lowest index, if they tie) is always the only maximum of its row: where a cast or a rounding
    would tie it, its entry is lifted by one step.

    Args:
        logits: ``(..., K)`` scores of any floating type, in nats, finite. Not modified.
        dtype: Type of the result: float64, float32, float16 or bfloat16.
        decimals: If given, from 0 to 12, round to multiples of ``10**-decimals`` by largest
            remainders, so that each row still sums to 1 (rounding entry by entry does not keep
            the sum). Every entry stays within one multiple of its exact value; the predicted
            class, and a rival that tied with it, within two.

    Returns:
        ``(..., K)`` probabilities on the same device, without gradient. Rows sum to 1 within
        ``torch.finfo(dtype).eps`` (float64: ``K`` times that, the error of the softmax's sum)
        plus ``K`` times the smallest subnormal number of ``dtype``.

    Raises:
        InvalidTensorError: ``logits`` are not as above.
        InvalidOptionError: ``dtype`` or ``decimals`` is not as above.
    """
    check_logits(logits)
    check_release_options(dtype, decimals)
    return _probabilities(logits.detach(), dtype, decimals)


def _probabilities(logits: Tensor, dtype: torch.dtype, decimals: int | None) -> Tensor:
    index = logits.argmax(-1, keepdim=True)
    probabilities = logits.double().softmax(-1)
    if decimals is not None:
        probabilities = _round_rows(probabilities, index, 10**decimals)
    return _lead(probabilities.to(dtype), index)


def _lead(rows: Tensor, index: Tensor) -> Tensor:
    """Lift the entry at ``index`` to the next number above its rivals, unless it is there."""
    rival = rows.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    least = torch.nextafter(rival, torch.full_like(rival, torch.inf))
    return rows.scatter(-1, index, torch.maximum(rows.gather(-1, index), least))


def _round_rows(probabilities: Tensor, index: Tensor, units: int) -> Tensor:
    """Round rows to multiples of ``1 / units`` that sum to 1, ``index`` strictly largest."""
    scaled = probabilities * units
    counts = scaled.floor()
    missing = units - counts.sum(-1, keepdim=True)
    # The entries with the largest remainders get a unit back; ties: the label, then by index.
    remainder = scaled - counts
    of_label = remainder.gather(-1, index)
    of_label = torch.nextafter(of_label, torch.full_like(of_label, 2))
    remainder = remainder.scatter(-1, index, of_label)
    order = remainder.argsort(stable=True, dim=-1, descending=True)
    rank = torch.empty_like(order).scatter(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    counts = counts + (rank < missing)
    # A rival with as many units as the label hands one over; any other then trails by one.
    rival, at = counts.scatter(-1, index, -1).max(-1, keepdim=True)
    tied = (rival >= counts.gather(-1, index)).to(counts.dtype)
    counts = counts.scatter_add(-1, index, tied).scatter_add(-1, at, -tied)
    return counts / units


def logits_from_confidences(confidences: Tensor) -> Tensor:
    """Return log probabilities: the logits, up to a constant per row that softmax ignores.

    For a defender who sees only the answers of an API. Rows are renormalised in float64. A zero
    counts as the smallest number of the given type, since the logarithm of 0 is not finite.

    Args:
        confidences: ``(..., K)`` probabilities of any floating type, ``K >= 2``; rows sum to 1
            within 0.05. Not modified.

    Returns:
        ``(..., K)`` float64 on the same device. The arg max of ``confidences`` (the lowest
        index, if they tie) is the only maximum.

    Raises:
        InvalidTensorError: ``confidences`` are not probabilities.
    """
    check_confidences(confidences)
    return _log_probabilities(confidences)


def _log_probabilities(confidences: Tensor) -> Tensor:
    limits = torch.finfo(confidences.dtype)
    probabilities = confidences.double()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    logits = probabilities.clamp_min(limits.tiny * limits.eps).log()
    # The log is flat near 1: two probabilities that differ may have one log.
    return _lead(logits, confidences.argmax(-1, keepdim=True))
