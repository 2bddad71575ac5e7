"""Guards on Ray: before a model of Ray Serve, and over stored scores with Ray Data."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oneway.adapters.guard import Array, Guard, check_rows
from oneway.checks import check_count, check_weight
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    UnknownNameError,
)
from oneway.extras import load_extra
from oneway.targets.failure import failed, redacted

LoadGuard = Callable[[], Guard]
"""Builds the guard in the process that uses it, so that a secret key is read there, never sent."""

REFUSED, FAILED = 400, 503


def guard_deployment(
    load_guard: LoadGuard,
    *,
    max_batch_size: int = 64,
    batch_wait_seconds: float = 0.01,
    method: str = "__call__",
    **options: Any,
) -> Any:
    """Return a Ray Serve deployment that guards a model's deployment.

    ``serve.run(guard_deployment(load_guard).bind(Model.bind()))`` serves it. Over HTTP it takes
    ``{"instances": [...]}`` and gives ``{"predictions": [...]}``; by a handle,
    ``handle.answer.remote(queries)`` takes and gives arrays. Requests that come together are
    answered as one batch. The model's deployment must have no route.

    It fails closed: 400 for bad queries, 503 where model or guard fails, without the cause in
    either.

    Args:
        load_guard: Builds the guard in each replica.
        max_batch_size: Most requests that are answered at once.
        batch_wait_seconds: Time that the first request waits for others, at least 0.
        method: Method of the model's deployment that takes ``(N, ...)`` float32 queries and gives
            ``(N, K)`` scores.
        **options: Options of ``ray.serve.deployment``, such as ``autoscaling_config``,
            ``num_replicas`` and ``name``.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        InvalidOptionError: An option is outside its range.
    """
    check_count("max_batch_size", max_batch_size)
    check_weight("batch_wait_seconds", batch_wait_seconds)
    serve = load_extra("ray.serve", extra="ray", purpose="guarding a deployment of Ray Serve")

    class OnewayGuard:
        """Asks a model's deployment, and answers with guarded probabilities."""

        def __init__(self, model: Any) -> None:
            self._ask = model if method == "__call__" else getattr(model, method)
            self._guard = load_guard()

        @serve.batch(  # type: ignore[untyped-decorator] # Ray is imported by name
            max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_seconds
        )
        async def _together(self, requests: list[Array]) -> list[Array | OnewayError]:
            return await answer_together(requests, self._scores, self._guard)

        async def _scores(self, queries: Array) -> Any:
            return await self._ask.remote(queries)

        async def answer(self, queries: Array) -> Array:
            """Return ``(N, K)`` guarded probabilities of ``(N, ...)`` queries."""
            answer: Array | OnewayError = await self._together(as_queries(queries))
            if isinstance(answer, OnewayError):
                raise answer
            return answer

        async def __call__(self, request: Any) -> Any:
            responses = load_extra("starlette.responses", extra="ray", purpose="answering by HTTP")
            try:
                queries = as_queries(await instances_of(request))
            except InvalidTensorError as error:
                return responses.JSONResponse({"error": str(error)}, REFUSED)
            try:
                answer = await self.answer(queries)
            except OnewayError:
                failure = "the guard or its model failed; nothing is released"
                return responses.JSONResponse({"error": failure}, FAILED)
            return responses.JSONResponse({"predictions": answer.tolist()})

    return serve.deployment(
        OnewayGuard, **{"max_ongoing_requests": 2 * max_batch_size, "name": "guard", **options}
    )


async def answer_together(
    requests: Sequence[Array], ask: Callable[[Array], Any], guard: Guard
) -> list[Array | OnewayError]:
    """Ask a model about several requests at once, and guard its scores.

    Requests of different shape are asked apart, and where a batch fails, each of its requests is
    asked again alone: no request fails because of another one.

    Args:
        requests: Each ``(n, ...)`` queries.
        ask: Awaitable; ``(N, ...)`` queries to ``(N, K)`` scores. Gets copies.
        guard: Turns the scores into probabilities.

    Returns:
        For each request its ``(n, K)`` probabilities, or its error.
    """
    answers: list[Array | OnewayError] = [InvalidTensorError("not asked")] * len(requests)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.shape[1:], []).append(index)
    for members in groups.values():
        parts = [requests[index] for index in members]
        for index, answer in zip(members, await _answers(parts, ask, guard), strict=True):
            answers[index] = answer
    return answers


async def _answers(
    requests: Sequence[Array], ask: Callable[[Array], Any], guard: Guard
) -> Sequence[Array | OnewayError]:
    """Answer requests of one shape."""
    try:
        released = await _guarded(np.concatenate(requests), ask, guard)
    except OnewayError as error:
        if len(requests) == 1:
            return [error]
        return [(await _answers([request], ask, guard))[0] for request in requests]
    return np.split(released, np.cumsum([len(request) for request in requests])[:-1])


async def _guarded(queries: Array, ask: Callable[[Array], Any], guard: Guard) -> Array:
    refusal: OnewayError
    try:
        scores = await ask(queries.copy())
    except Exception as error:  # noqa: BLE001  raised as ours; Ray quotes it even if it is ours
        refusal = failed("the model's deployment", len(queries), error, caused=False)
    else:
        check_rows(scores, len(queries), "the model's deployment", np.ndarray)
        try:
            # Guarding computes; meanwhile the replica must go on taking requests.
            return await asyncio.to_thread(guard, scores, queries)
        except Exception as error:  # noqa: BLE001  such as a lack of memory; raised as ours
            refusal = redacted("the guard", len(queries), error)
    raise refusal  # not within the handlers: the context's text may quote a query


def as_queries(queries: object) -> Array:
    """Return queries as a float32 array.

    Raises:
        InvalidTensorError: ``queries`` are no finite numbers of shape ``(N, ...)``, N at least 1.
    """
    try:
        plain = np.asarray(queries)
    except ValueError:
        plain = np.empty(0, object)  # rows of several lengths
    if plain.dtype.kind not in "fiu" or plain.ndim < 2 or not len(plain):
        raise InvalidTensorError(
            "queries must be numbers of shape (N, ...), one query per row and at least one, but "
            f"got {plain.dtype} of shape {plain.shape}."
        )
    with np.errstate(over="ignore"):
        narrow = plain.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise InvalidTensorError("queries must be finite in float32, but some are not.")
    return narrow


async def instances_of(request: Any) -> Any:
    """Return the value of ``instances`` in a request's JSON.

    Raises:
        InvalidTensorError: The body is no JSON object with that key.
    """
    try:
        body = await request.json()
    except (ValueError, RecursionError):  # lists in lists in lists
        body = None
    if not isinstance(body, dict) or "instances" not in body:
        raise InvalidTensorError(
            'the body must be a JSON object {"instances": [[...], ...]}, one query per row.'
        )
    return body["instances"]


def guard_dataset(
    dataset: Any,
    load_guard: LoadGuard,
    *,
    scores: str,
    queries: str | None = None,
    keep: Sequence[str] = (),
    released: str = "confidences",
    batch_size: int = 1024,
    workers: int = 1,
) -> Any:
    """Guard stored scores in bulk, by Ray Data.

    It streams: a worker holds one batch at a time. Clean scores, queries and any column that is
    not listed are dropped.

    Args:
        dataset: A ``ray.data.Dataset``.
        load_guard: Builds the guard in each worker.
        scores: The column with one vector of scores per row.
        queries: The column with the queries, for a guard that needs them.
        keep: Columns that stay as they are, unguarded.
        released: Name of the column with the guarded probabilities.
        batch_size: Rows that a worker guards at once.
        workers: Number of processes that guard side by side.

    Returns:
        A lazy dataset of the columns ``keep`` and ``released``.

    Raises:
        MissingExtraError: Ray Data is not installed.
        UnknownNameError: The dataset lacks a column.
        InvalidOptionError: An option is outside its range, or the clean scores would be kept.
    """
    check_count("batch_size", batch_size)
    check_count("workers", workers)
    if isinstance(keep, str) or scores in keep or released in keep:
        raise InvalidOptionError(
            f"keep must be a sequence of columns without {scores!r} and {released!r}, but got "
            f"{keep!r}. Clean scores are dropped."
        )
    data = load_extra("ray.data", extra="ray", purpose="guarding a dataset of Ray Data")
    columns = dataset.columns()
    for name in (scores, *keep, *(() if queries is None else (queries,))):
        UnknownNameError.check("column of the dataset", name, columns)
    return dataset.map_batches(
        GuardRows,
        fn_constructor_args=(load_guard, scores, queries, tuple(keep), released),
        batch_size=batch_size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(size=workers),
    )


class GuardRows:
    """Guards batches of columns, in a worker of Ray Data."""

    def __init__(
        self,
        load_guard: LoadGuard,
        scores: str,
        queries: str | None,
        keep: Sequence[str],
        released: str,
    ) -> None:
        """Build the guard; see :func:`guard_dataset`."""
        self._guard = load_guard()
        self._scores, self._queries = scores, queries
        self._keep, self._released = keep, released

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the kept columns and the column of guarded probabilities."""
        queries = None if self._queries is None else stacked(batch[self._queries])
        guarded = self._guard(stacked(batch[self._scores]), queries)
        return {**{name: batch[name] for name in self._keep}, self._released: guarded}


def stacked(column: Array) -> Array:
    """Return a column of vectors as one array; Ray gives lists as an array of objects."""
    return np.stack(list(column)) if column.dtype == object else column
