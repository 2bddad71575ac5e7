"""Randomness that a secret key and the query decide: the same query is answered the same."""

import hashlib
import hmac
import threading

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_logits
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError

LEAST_KEY_BYTES = 16
"""Shorter keys can be guessed."""

WORDS = 624
"""Numbers of 32 bits in the state of PyTorch's generator on the CPU, a Mersenne twister."""


class KeyedDefense:
    """A random defense whose draws are fixed by a secret key and each query's own numbers.

    Without it, whoever asks the same query again and again averages the noise away. With it every
    process that holds the key answers the same, in a batch of any make-up. Queries that differ in
    one number have independent draws: near-duplicates can still be averaged.
    """

    requires_input = True
    deterministic = True

    def __init__(self, defense: Defense, generator: Generator, key: bytes) -> None:
        """Wrap a random defense.

        Args:
            defense: It draws from ``generator`` and from nothing else.
            generator: That one, on the CPU. It is set before every row.
            key: Secret, at least 16 bytes. Who knows it undoes the noise.

        Raises:
            InvalidOptionError: The key is too short.
        """
        if len(key) < LEAST_KEY_BYTES:
            raise InvalidOptionError(
                f"the key must have at least {LEAST_KEY_BYTES} bytes, but has {len(key)}. Make one "
                "with `openssl rand -hex 32`."
            )
        self.defense, self.keeps_label = defense, defense.keeps_label
        self._generator, self._key = generator, key
        self._turn = threading.Lock()

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return what the defense gives, row by row, each with its own draws.

        Args:
            logits: ``(N, K)`` clean scores.
            images: ``(N, ...)`` the queries: floating, finite.

        Raises:
            InvalidTensorError: There are no queries to draw for, or a tensor cannot be used.
        """
        check_logits(logits)
        if images is None:
            raise InvalidTensorError("images must be given: the draws depend on the queries.")
        check_images(images, rows=len(logits))
        parts = []
        with self._turn:  # one generator, one row at a time
            for row in range(len(logits)):
                query = images[row : row + 1]
                self._generator.set_state(self._state(query))
                asked = query if self.defense.requires_input else None
                parts.append(self.defense(logits[row : row + 1], asked))
        return torch.cat(parts)

    def _state(self, query: Tensor) -> Tensor:
        """Return the generator's state for a query.

        PyTorch's own seeds have 32 bits, few enough to try them all: the whole state comes from
        the key instead.
        """
        # Adding 0 makes -0.0 and 0.0, which are the same query, the same bytes.
        numbers = (query.detach().to("cpu", torch.float32) + 0.0).contiguous()
        said = f"{tuple(query.shape[1:])}:".encode() + numbers.numpy().astype("<f4").tobytes()
        digest = hmac.digest(self._key, said, "sha256")
        state = Generator().manual_seed(0).get_state()
        words = state.view(torch.int64)
        # In front of the twister's numbers stand the seed, two counters and a position.
        if len(words) != WORDS + 8 or not bool((words[3 : 3 + WORDS] < 2**32).all()):
            raise InvalidOptionError(
                "the state of PyTorch's generator looks other than expected, so that it cannot "
                "be keyed. Use the version of torch that oneway was tested with."
            )
        drawn = hashlib.shake_256(digest).digest(4 * WORDS)
        words[3 : 3 + WORDS] = torch.frombuffer(bytearray(drawn), dtype=torch.uint32).long()
        return state
