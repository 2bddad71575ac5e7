"""Digests of the queries that a codebook was fitted to: is a certificate's file held out?

They lie in a file beside the guard, and stay with the operator: whoever holds the file (and the
key, if there is one) can test whether a candidate was among the queries. The deployed guard has
none of them.

**The test.** Fresh traffic may repeat what was fitted: a frequent query is on both sides. Let m
rows be fitted, n be new, and a query occur t times in both together. If the new rows are further
draws from the same traffic, any t of the m + n places are as likely as any other, so that the query
is on both sides with the chance 1 - (C(m, t) + C(n, t)) / C(m + n, t), whatever the traffic: one
half where t = 2 and m = n, nearly 1 for a frequent query. Chernoff's bound for a sum of indicators
with these chances ("A measure of asymptotic efficiency for tests of a hypothesis based on the sum
of observations", Annals of Mathematical Statistics 23, 1952) says how unlikely the number of
queries on both sides is. Bursts of one query within a file only make it smaller.
"""

import math
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_images
from oneway.defenses.codebook.traffic import check_groups, query_bytes, query_keys
from oneway.defenses.keyed import SecretKey
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.files import corrupt, read_tensors, write_tensors

KIND = "fitted-queries"

REMEDY = "It is written by `oneway codebook`, beside the guard."

RISK = 1e-3
"""Probability with which fresh traffic is called not held out, at most."""

TOLERATED = 0.01
"""Share of the new queries that may be fitted ones beyond chance: a few move no figure."""

POWERS = tuple(0.02 * 1.25**step for step in range(30))
"""Powers that Chernoff's bound tries, up to 13."""

DIGEST_BYTES = 16

PURPOSE = b"oneway fitted queries 1\0"
"""Keeps these digests apart from anything else that uses the same key."""

Answer = Literal["yes", "no", "not checked"]


@dataclass(frozen=True)
class HeldOut:
    """Whether a codebook was fitted without the certified queries.

    Attributes:
        answer: ``"yes"``, ``"no"``, or ``"not checked"`` where nothing is known of the queries that
            it was fitted to.
        shared: Number of distinct certified queries that were fitted, too; None where digests were
            not compared.
        expected: Number of these that fresh draws from the same traffic would have on average; None
            where digests were not compared.
    """

    answer: Answer
    shared: int | None = None
    expected: float | None = None

    def faults(self) -> Iterator[str]:
        """Yield which values are out of range, in words."""
        for value in (self.shared, self.expected):
            if value is not None and not 0 <= value < math.inf:
                yield "a number of shared queries is out of range"


NOT_CHECKED = HeldOut("not checked")


@dataclass(frozen=True)
class FittedQueries:
    """Digests of the queries, and of their groups, that a table was fitted to.

    A codebook that is pickled, as joblib and other processes do, comes back without its digests.

    Attributes:
        table: SHA-256 of the table.
        queries: Number of rows of each query, by digest.
        groups: Digests of groups; empty if none were given.
        salt: Salt of the digests; None if the operator's key made them.
        key: Makes digests.
    """

    table: str
    queries: Mapping[bytes, int]
    groups: frozenset[bytes]
    salt: str | None
    key: SecretKey

    def __deepcopy__(self, _: object) -> "FittedQueries":
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Become None in a pickle: digests stay with the operator, and no key is pickled."""
        return type(None), ()

    @classmethod
    def of(
        cls,
        table: str,
        queries: Tensor,
        groups: Tensor | None = None,
        *,
        key: SecretKey | None = None,
    ) -> "FittedQueries":
        """Digest the queries that a table was fitted to.

        Args:
            table: SHA-256 of the table, from :meth:`Codebook.digest`.
            queries: ``(N, ...)``, with copies.
            groups: ``(N)`` int64, or None.
            key: The operator's key, which is kept elsewhere; None: a salt is drawn, and kept in the
                file.
        """
        salt = secrets.token_hex(32) if key is None else None
        key = key or SecretKey(str(salt).encode())
        return cls(
            table,
            Counter(_digests(key, query_bytes(queries))),
            frozenset() if groups is None else frozenset(_digests(key, _group_bytes(groups))),
            salt,
            key,
        )

    def judge(self, queries: Tensor, groups: Tensor | None = None) -> HeldOut:
        """Say whether queries are further draws of the traffic, or were fitted; see the module.

        Args:
            queries: ``(N, ...)`` with copies, before any are dropped.
            groups: ``(N)`` int64, or None: the answer is at best ``"not checked"`` if the table was
                fitted with groups.

        Raises:
            InvalidTensorError: ``queries`` are no images, or ``groups`` are not as many.
            InvalidOptionError: Some groups were fitted: no bound over groups holds then.
        """
        check_images(queries)
        if groups is not None:
            check_groups(groups, len(queries))
            self._refuse_groups(groups)
        found = Counter(_digests(self.key, query_bytes(queries)))
        fitted, new = sum(self.queries.values()), sum(found.values())
        totals = Counter(self.queries)
        totals.update(found)
        repeats = Counter(total for total in totals.values() if total > 1)
        chances = [(times, _chance_of_both(total, fitted, new)) for total, times in repeats.items()]
        expected = sum(times * chance for times, chance in chances)
        shared = len(found.keys() & self.queries.keys())
        too_many = shared - expected > TOLERATED * len(found)
        unlikely = _log_unlikeliness(shared, chances) > math.log(1 / RISK)
        answer: Answer = "no" if too_many and unlikely else "yes"
        if answer == "yes" and self.groups and groups is None:
            answer = "not checked"  # other queries of the same people may have been fitted
        return HeldOut(answer, shared, expected)

    def _refuse_groups(self, groups: Tensor) -> None:
        found = set(_digests(self.key, _group_bytes(groups)))
        known = len(found & self.groups)
        if known:
            raise InvalidOptionError(
                f"no group may be on both sides of a split, but {known} of the {len(found)} groups "
                "of these queries were fitted. Leave out the queries of the groups that were "
                "fitted."
            )

    def save(self, path: Path) -> None:
        """Write the digests as one safetensors file, in an order that says nothing."""
        ordered = sorted(self.queries)
        tensors = {
            "queries": _as_tensor(ordered),
            "counts": torch.tensor([self.queries[each] for each in ordered], dtype=torch.int64),
            "groups": _as_tensor(sorted(self.groups)),
        }
        header = {"kind": KIND, "table": self.table, "salt": self.salt, "check": _check(self.key)}
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path, key: SecretKey | None = None) -> "FittedQueries":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            key: The operator's key, if it made the digests.

        Raises:
            MissingDataError: The file is not there.
            CorruptDataError: The file is something else.
            InvalidOptionError: The key is missing, or another than the one that made the digests.
        """
        tensors, header = read_tensors(path, "fitted queries", REMEDY)
        try:
            if header["kind"] != KIND:
                raise TypeError
            salt, check = header["salt"], header["check"]
            if salt is not None:
                key = SecretKey(salt.encode())
            digests, groups = (_from_tensor(tensors[name]) for name in ("queries", "groups"))
            counts = tensors["counts"].tolist()
            if len(counts) != len(digests) or not all(
                isinstance(count, int) and count >= 1 for count in counts
            ):
                raise TypeError
            table = str(header["table"])
        except (AttributeError, KeyError, TypeError, InvalidOptionError) as error:
            raise corrupt(path, "fitted queries", REMEDY, error) from error
        if key is None:
            raise InvalidOptionError(
                f"{path} was made with a key, which is not in it. Pass --key-file with the same "
                "key."
            )
        if check != _check(key):
            if salt is not None:
                raise CorruptDataError(f"{path} is damaged: its salt is another. {REMEDY}")
            raise InvalidOptionError(
                f"{path} was made with another key. Pass --key-file with the same key."
            )
        counted = Counter(dict(zip(digests, counts, strict=True)))
        return cls(table, counted, frozenset(groups), salt, key)


def refuse_training(queries: Tensor | None, training: Tensor) -> None:
    """Refuse queries that the model was trained on, since the table would tell who they are.

    Scores of training members are more confident than others. A codebook that is fitted to them has
    cells where members are, so that the table itself tells membership.

    Args:
        queries: ``(N, ...)``; None is refused.
        training: ``(M, ...)`` the inputs that the model was trained on.

    Raises:
        InvalidOptionError: Some queries are among the training inputs, they differ in shape, or
            there are none.
    """
    if queries is None:
        raise InvalidOptionError(
            "training inputs are looked for among the queries, which were not given. Pass them."
        )
    if queries.shape[1:] != training.shape[1:]:
        raise InvalidOptionError(
            f"training inputs must have the shape of queries, {tuple(queries.shape[1:])}, but have "
            f"{tuple(training.shape[1:])}. Pass them as the model takes them."
        )
    found = int(torch.isin(query_keys(queries), query_keys(training)).sum())
    if found:
        raise InvalidOptionError(
            f"a codebook must not be fitted to what the model was trained on, since its table "
            f"would tell who the members are, but {found} of {len(queries)} queries are training "
            "inputs. Leave them out."
        )


def _chance_of_both(total: int, fitted: int, new: int) -> float:
    """Return the chance that ``total`` places at random among both parts are not all in one."""
    whole = _log_choices(fitted + new, total)
    alone = [math.exp(_log_choices(part, total) - whole) for part in (fitted, new) if part >= total]
    return max(0.0, 1.0 - sum(alone))


def _log_choices(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _log_unlikeliness(seen: int, chances: Sequence[tuple[int, float]]) -> float:
    """Return Chernoff's bound on how unlikely so large a sum of indicators is, in nats.

    Args:
        seen: The sum.
        chances: Numbers of indicators, and their chance.
    """
    # Each power gives a valid bound: a grid loses next to nothing against the best power.
    return max(
        power * seen
        - math.fsum(times * math.log1p(chance * math.expm1(power)) for times, chance in chances)
        for power in POWERS
    )


def _digests(key: SecretKey, messages: Iterator[bytes]) -> Iterator[bytes]:
    return (key.digest(PURPOSE + message)[:DIGEST_BYTES] for message in messages)


def _group_bytes(groups: Tensor) -> Iterator[bytes]:
    # A prefix, since a query of two values is as long as a group's number.
    return (b"group" + group.to_bytes(8, "big", signed=True) for group in groups.unique().tolist())


def _check(key: SecretKey) -> str:
    return key.digest(PURPOSE + b"check").hex()


def _as_tensor(digests: list[bytes]) -> Tensor:
    flat = torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).copy())
    return flat.view(-1, DIGEST_BYTES)


def _from_tensor(stored: Tensor) -> list[bytes]:
    if stored.dtype != torch.uint8 or stored.ndim != 2 or stored.shape[1] != DIGEST_BYTES:
        raise TypeError
    numbers: Any = stored.numpy()
    return [row.tobytes() for row in numbers]
