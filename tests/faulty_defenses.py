"""Defenses that break their promises, and defenses that are harmless though they look otherwise."""

import asyncio

import torch

from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    TargetFailedError,
)


class Faulty:
    """A defense that divides the logits by 2, until ``fault`` takes its place.

    It may ask for the queries, and draw: then ``fault`` changes each answer.
    """

    keeps_label = True

    def __init__(self, fault=None, *, requires_input=False, deterministic=True):
        self.fault, self.requires_input, self.deterministic = fault, requires_input, deterministic

    def __call__(self, logits, images=None):
        if self.requires_input:
            images.neg_()  # its copy: the caller's queries must stay
        return logits / 2 if self.fault is None else self.fault(logits)


class FaultyDraws(Faulty):
    """The same, with several answers at once."""

    def __init__(self, fault=None, **options):
        super().__init__(fault, deterministic=False, **options)

    def draws(self, logits, images, count):
        answer = self(logits, images)
        return answer.expand(count, *answer.shape) if isinstance(answer, torch.Tensor) else answer


class Panic(BaseException):
    """As from a library in Rust that panics: no Exception."""


def raises(kind):
    def fault(logits):
        raise kind(f"scores were {logits.tolist()}")

    return fault


def raises_from_scores(logits):
    try:
        raise ValueError(f"scores were {logits.tolist()}")
    except ValueError as error:
        raise DefenseFailedError(f"cannot defend {logits.tolist()}") from error


def other_type(logits):
    return logits.float() if logits.dtype == torch.float64 else logits.double()


REFUSED = {
    **{
        f"raises {kind.__name__}": raises(kind)
        for kind in (
            ValueError,
            MemoryError,
            Panic,
            asyncio.CancelledError,
            OnewayError,
            DefenseFailedError,
            InvalidTensorError,
            InvalidOptionError,
            TargetFailedError,
        )
    },
    "raises from an error with scores": raises_from_scores,
    "NaN": lambda logits: logits * torch.nan,
    "one NaN": lambda logits: logits.index_fill(0, torch.tensor([0]), torch.nan),
    "infinite": lambda logits: logits + torch.inf,
    "fewer rows": lambda logits: logits[1:],
    "fewer classes": lambda logits: logits[:, 1:],
    "more classes": lambda logits: torch.cat([logits, logits[:, :1]], 1),
    "turned": lambda logits: logits.T,
    "one more axis": lambda logits: logits[None, None],
    "another type": other_type,
    "whole numbers": lambda logits: logits.long(),
    "complex numbers": lambda logits: logits.to(torch.complex64),
    "another device": lambda logits: logits.to("meta"),
    "sparse": lambda logits: logits.to_sparse(),
    "a list": lambda logits: logits.tolist(),
    "an array": lambda logits: logits.numpy(),
    "nothing": lambda _: None,
    "another label": lambda logits: -logits,
    "one other label": lambda logits: torch.cat([-logits[:1], logits[1:]]),
    "writes the label away": lambda logits: logits.neg_(),
    "writes the label away, and returns a copy": lambda logits: logits.neg_().clone(),
}
"""What a defense does to ``(N, K)`` logits that lets nothing out, whatever way is taken."""


def writes_afterwards(logits):
    answer = logits / 2
    logits.neg_()
    return answer


MEMORY = {kind: torch.empty(4096, dtype=kind) for kind in (torch.float32, torch.float64)}


def in_one_memory(logits):
    """Answer each time in the same memory, as a compiled graph does."""
    answer = MEMORY[logits.dtype][: logits.numel()].reshape(logits.shape)
    return answer.copy_(logits / 2)


HARMLESS = {
    "returns its input": (lambda logits: logits, lambda logits: logits.clone()),
    "writes into its input": (lambda logits: logits.div_(2), lambda logits: logits / 2),
    "writes into its input afterwards": (writes_afterwards, lambda logits: logits / 2),
    "answers in one memory": (in_one_memory, lambda logits: logits / 2),
    "returns a view of its input": (lambda logits: logits.flip(0).flip(0), lambda logits: logits),
    "asks for a gradient": (
        lambda logits: logits.clone().requires_grad_(),
        lambda logits: logits.clone(),
    ),
}
"""What a defense does in memory, beside the same without: the answer must be the same."""
