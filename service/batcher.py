"""Answers concurrent calls together: what arrives while one call is under way goes into the next.

Nothing waits for a timer, so a lone call costs one future and no delay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Coalesces items into calls of ``run``, at most ``inflight`` calls at a time.

    Args:
        run: takes a list of items, returns their results in the same order. It must bound its own time:
            a call that never ends would hold its place for ever.
        max_size: most items in one call.
        inflight: most calls under way at once.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, max_size: int, inflight: int = 1
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._free = inflight
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Return the item's result; raises what its call raised. Cancelling withdraws an item that still waits."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        # While a call hangs, those who gave up waiting stand at the head; without this they would pile up.
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        self._waiting.append((item, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._call())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _call(self) -> None:
        batch = self._take()
        try:
            if batch:
                results = await self._run([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        except asyncio.CancelledError:
            # Its callers were not cancelled: they get an error, and may ask somebody else.
            for _, future in batch:
                if not future.done():
                    future.set_exception(ConnectionError("the call was cancelled"))
            raise
        except Exception as error:  # every waiting caller must hear of it, whatever it is
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start()
