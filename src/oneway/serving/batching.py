"""Queries that arrive together are answered together, on one thread beside the event loop.

While a batch is computed the next one gathers, so that load makes batches larger and an idle
server answers at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from oneway.serving.refusals import RefusedError
from oneway.targets.failure import where_raised

Q = TypeVar("Q")
R = TypeVar("R")

log = logging.getLogger("oneway.serving")


def closing() -> RefusedError:
    """Refuse because the server ends."""
    return RefusedError(503, "the server is shutting down", "closing", retry_after=1)


@dataclass
class _Waiting(Generic[Q, R]):
    query: Q
    size: int
    answer: asyncio.Future[R]


class Batcher(Generic[Q, R]):
    """Gathers queries of many requests into batches, and hands each its own answer.

    A batch that fails is tried again request by request, so that nobody's query takes down
    somebody else's.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[R]],
        size: Callable[[Q], int],
        *,
        max_batch_size: int,
        max_waiting_rows: int,
        wait_seconds: float = 0.0,
    ) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            answer: Answers several requests at once, one by one in order. It raises
                :class:`RefusedError` and nothing else.
            size: Rows of a request.
            max_batch_size: Most rows of a batch, unless one request alone has more.
            max_waiting_rows: Rows that may wait. Beyond, requests are turned away.
            wait_seconds: How long a batch waits for more.
        """
        self._answer, self._size = answer, size
        self.max_batch_size, self.max_waiting_rows = max_batch_size, max_waiting_rows
        self.wait_seconds = wait_seconds
        self.waiting_rows = 0
        self._waiting: deque[_Waiting[Q, R]] = deque()
        self._asked: list[_Waiting[Q, R]] = []
        self._arrived = asyncio.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def alive(self) -> bool:
        """Whether queries are being answered."""
        return self._task is not None and not self._task.done() and not self._closing

    async def start(self) -> None:
        """Begin to answer."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oneway-guard")
        self._task = asyncio.create_task(self._run(self._thread))

    async def close(self) -> None:
        """Answer what waits, take nothing more, and end."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        if self._thread is not None:
            self._thread.shutdown()

    async def ask(self, query: Q, timeout_seconds: float) -> R:
        """Return the answer to one request.

        Raises:
            RefusedError: There is none: too many wait, it took too long, or model or guard failed.
        """
        size = self._size(query)
        if not self.alive:
            raise closing()
        if self.waiting_rows + size > self.max_waiting_rows:
            raise RefusedError(
                429, "too many queries are waiting; ask again later", "busy", retry_after=1
            )
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(query, size, future))
        self.waiting_rows += size
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            raise RefusedError(504, "there was no answer in time", "timeout") from None

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        try:
            await self._answer_all(thread)
        # A fault of oneway's own, since model and guard are dealt with: end, and tell those who
        # wait. The server is then neither ready nor live.
        except Exception as error:  # noqa: BLE001
            facts = {"error": type(error).__name__, "raised": where_raised(error)}
            log.critical("answering_ended", extra={"facts": facts})
        finally:
            self._closing = True
            for one in (*self._asked, *self._waiting):
                if not one.answer.done():
                    one.answer.set_exception(closing())

    async def _answer_all(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                if self.wait_seconds and not self._closing:
                    await asyncio.sleep(self.wait_seconds)
                continue
            batch = self._take()
            if not batch:
                continue
            self._asked = batch
            answers = await loop.run_in_executor(
                thread, self._answers, [one.query for one in batch]
            )
            for one, answer in zip(batch, answers, strict=True):
                if one.answer.done():  # its client has gone
                    continue
                if isinstance(answer, RefusedError):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _take(self) -> list[_Waiting[Q, R]]:
        """Return the requests of the next batch, without those that nobody waits for."""
        batch: list[_Waiting[Q, R]] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].size <= self.max_batch_size):
            one = self._waiting.popleft()
            self.waiting_rows -= one.size
            if not one.answer.done():
                batch.append(one)
                rows += one.size
        return batch

    def _answers(self, queries: Sequence[Q]) -> Sequence[R | RefusedError]:
        try:
            return self._answer(queries)
        except RefusedError as error:
            if len(queries) == 1:
                return [error]
        return [self._answers([query])[0] for query in queries]
