"""Random defenses whose draws are decided by a secret key and the query, not by when it comes.

A client who asks a random defense again averages its noise away. Drawn by a key instead, the same
query has one answer: in every worker, after a restart, and in any batch.
"""

import hashlib
import hmac
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from oneway.checks import check_above, check_images, check_logits
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError, MissingDataError

LEAST_BYTES = 16
"""Shortest key, in bytes: 128 bits, if they are random."""

PURPOSE = b"oneway keyed randomness 1\0"
"""Keeps these draws apart from anything else that uses the same key."""

LOWEST = -64.0
"""Log probabilities below this decide no draw, in nats."""

STATE_BYTES = 5056
"""Size of the state of a generator on the CPU."""

WORDS = slice(24, 24 + 8 * 624)
"""Where a generator's state holds its 624 words, eight bytes each: ``at::mt19937``."""


class SecretKey:
    """A key that shows itself nowhere: not in a ``repr``, a log, an error, nor a pickle."""

    __slots__ = ("_bytes",)

    def __init__(self, secret: bytes) -> None:
        """Take the key's bytes.

        Args:
            secret: At least 16 bytes, drawn at random, as by ``openssl rand -hex 32``. White
                space at its end is dropped, since files and environments add a newline.

        Raises:
            InvalidOptionError: It is too short, or not bytes.
        """
        stripped = secret.rstrip() if isinstance(secret, bytes) else b""
        if len(stripped) < LEAST_BYTES:
            raise InvalidOptionError(
                f"a key must be at least {LEAST_BYTES} bytes, but this one is shorter, or not "
                "bytes. Make one with `openssl rand -hex 32`, once, and keep it secret."
            )
        self._bytes = stripped

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read the key from a file, such as a mounted secret.

        Raises:
            MissingDataError: There is no such file, or it cannot be read.
            InvalidOptionError: The key is too short.
        """
        try:
            secret = Path(path).read_bytes()
        except OSError as error:
            raise MissingDataError(
                f"there is no key that can be read in {path} ({type(error).__name__}). Make one "
                "with `openssl rand -hex 32`, and let the server's user read it."
            ) from error
        return cls(secret)

    @classmethod
    def from_environment(cls, name: str = "ONEWAY_KEY") -> Self:
        """Read the key from an environment variable.

        Raises:
            MissingDataError: There is no such variable.
            InvalidOptionError: The key is too short.
        """
        secret = os.environ.get(name)
        if secret is None:
            raise MissingDataError(
                f"there is no environment variable {name} with the key. Make a key with "
                "`openssl rand -hex 32`, and give all workers the same."
            )
        return cls(os.fsencode(secret))

    def digest(self, message: bytes) -> bytes:
        """Return the HMAC-SHA-256 of a message, 32 bytes."""
        return hmac.digest(self._bytes, message, "sha256")

    def __repr__(self) -> str:
        return "SecretKey(...)"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> str:
        raise InvalidOptionError(
            "a key is not pickled, since it would lie in the file or travel with the task. Read "
            "it where it is used, by SecretKey.from_environment or SecretKey.from_file."
        )


class KeyedRandomness:
    """A random defense made a function of the query: same query, same answer, everywhere.

    Each row is answered alone, with draws from a generator for this row. The generator's whole
    state comes from the key and the query: ``manual_seed`` would keep 32 bits of it, which an
    attacker who guesses the noise tries in minutes.

    What it does not stop: a client who asks for many slightly different queries, and averages.
    By ``"scores"``, queries whose log probabilities round to the same multiples of ``grid`` share
    their draws; by ``"input"``, only queries that are the same in float32 do.

    Safe to call from several threads. It is never pickled; a copy of it is itself.
    """

    deterministic = True

    def __init__(
        self,
        defense_factory: Callable[[Generator], Defense],
        key: SecretKey,
        *,
        bind: Literal["scores", "input"] = "scores",
        grid: float = 1 / 16,
    ) -> None:
        """Build the defense over a generator that follows the key.

        Args:
            defense_factory: Takes a generator on the CPU, and builds the defense that draws
                from it and from nothing else.
            key: The same in all workers.
            bind: What decides the draws. ``"scores"``: the clean log probabilities, so that no
                query is needed. ``"input"``: the query's values in their order, in float32.
            grid: For ``"scores"``: what log probabilities are rounded to, in nats, above 0.
                Scores differ in their last digits from batch to batch; a grid hides that from
                all but those that lie on the border of two cells. Coarser, fewer do.

        Raises:
            InvalidOptionError: An option is outside its range, or ``defense_factory`` gives no
                defense.
        """
        if not isinstance(key, SecretKey):
            raise InvalidOptionError(
                f"key must be a SecretKey, but got {type(key).__name__}. Read it by "
                "SecretKey.from_environment or SecretKey.from_file."
            )
        if bind not in ("scores", "input"):
            raise InvalidOptionError(f"bind must be 'scores' or 'input', but got {bind!r}.")
        check_above("grid", grid, 0)
        self.key, self.bind, self.grid = key, bind, grid
        self._generator, self._lock = Generator(), threading.Lock()
        self.defense = defense_factory(self._generator)
        if not isinstance(self.defense, Defense):
            raise InvalidOptionError(
                "defense_factory must return a defense, but returned "
                f"{type(self.defense).__name__}. Pass `lambda generator: GaussianNoise("
                "generator=generator)`, say."
            )
        self.keeps_label = self.defense.keeps_label
        self.requires_input = self.defense.requires_input or self._reads_input

    @property
    def _reads_input(self) -> bool:
        return self.bind == "input" and not self.defense.deterministic

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Answer each row by itself, with the draws that the key gives it.

        Args:
            logits: ``(N, K)`` clean scores of any floating type, in nats, finite.
            images: ``(N, ...)`` the queries, where ``requires_input``.

        Returns:
            ``(N, K)`` logits of the same type.

        Raises:
            InvalidTensorError: Logits or images have the wrong type, shape or content, or images
                are missing.
        """
        if self.defense.deterministic:
            return self.defense(logits, images)
        check_logits(logits)
        if logits.ndim != 2:
            raise InvalidTensorError(
                f"logits must have shape (N, K), but got {tuple(logits.shape)}. Pass "
                "`logits.unsqueeze(0)` for a single row."
            )
        if self.requires_input:
            if images is None:
                raise InvalidTensorError(
                    f"images are needed by {self!r}, one per row of scores, but got None. Pass "
                    "the queries, or bind the draws to the scores."
                )
            check_images(images, len(logits))
        if not len(logits):
            return logits.clone()
        if self._reads_input and images is not None:  # refused above if they are missing
            messages = _input_bytes(images)
        else:
            messages = _score_bytes(logits, self.grid)
        queries = images if self.defense.requires_input else None
        rows = []
        with self._lock:
            for row, message in enumerate(messages):
                part = slice(row, row + 1)
                self._generator.set_state(_state_of(self.key.digest(PURPOSE + message)))
                rows.append(self.defense(logits[part], None if queries is None else queries[part]))
        return torch.cat(rows)

    def __repr__(self) -> str:
        return f"KeyedRandomness({type(self.defense).__name__}, bind={self.bind!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> str:
        raise InvalidOptionError(
            f"{self!r} is not pickled, since its key would lie in the file or travel with the "
            "task. Build it where it answers, as in the constructor of a worker."
        )


def _score_bytes(logits: Tensor, grid: float) -> list[bytes]:
    """Return each row's log probabilities as bytes, rounded to multiples of ``grid`` nats."""
    rows = logits.detach().cpu().double().log_softmax(-1).clamp_min(LOWEST)
    cells = (rows / grid).round().to(torch.int64).numpy().astype("<i8")
    return [b"scores\0" + row.tobytes() for row in cells]


def _input_bytes(images: Tensor) -> list[bytes]:
    """Return each query's float32 values as bytes, in their order."""
    # Zero has two signs in memory, and is one number.
    plain = images.detach().to("cpu", torch.float32) + 0.0
    rows = plain.reshape(len(plain), -1).numpy().astype("<f4")
    # Without their shape: a server may take a query in many shapes, and each must not be another
    # draw to average.
    return [b"input\0" + row.tobytes() for row in rows]


def _state_of(digest: bytes) -> Tensor:
    """Return the state of a generator on the CPU whose 624 words come from a digest."""
    state = Generator().manual_seed(0).get_state()
    if len(state) != STATE_BYTES:
        raise InvalidOptionError(
            f"a generator's state must have {STATE_BYTES} bytes, but has {len(state)} in PyTorch "
            f"{torch.__version__}, so that it cannot be keyed. Use a version that oneway was "
            "tested with."
        )
    words = np.frombuffer(hashlib.shake_256(digest).digest(4 * 624), "<u4")
    state.numpy()[WORDS] = words.astype(np.uint64).view(np.uint8)
    return state
