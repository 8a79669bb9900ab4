"""Concurrent calls share one call, and each gets its own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batcher import Batcher


class Doubler:
    """Doubles what it gets, slowly, and remembers the sizes of its calls."""

    def __init__(self, delay_s: float = 0.002) -> None:
        self.delay_s = delay_s
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0

    async def run(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.delay_s)
        self.under_way -= 1
        if -1 in items:
            msg = "bad item"
            raise ValueError(msg)
        return [2 * item for item in items]


@given(count=st.integers(1, 60), max_size=st.integers(1, 20), inflight=st.integers(1, 3))
def test_everyone_gets_their_own_result_in_few_calls(count: int, max_size: int, inflight: int) -> None:
    doubler = Doubler(0)

    async def run() -> list[int]:
        batcher = Batcher(doubler.run, max_size=max_size, inflight=inflight)
        return await asyncio.gather(*(batcher.submit(i) for i in range(count)))

    assert asyncio.run(run()) == [2 * i for i in range(count)]
    assert sum(doubler.sizes) == count
    assert max(doubler.sizes) <= max_size
    assert doubler.most_under_way <= inflight


def test_a_lone_call_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    doubler = Doubler(0.02)

    async def run() -> None:
        batcher = Batcher(doubler.run, max_size=100)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.005)
        await asyncio.gather(first, *(batcher.submit(i) for i in range(10)))

    asyncio.run(run())

    assert doubler.sizes == [1, 10]


def test_a_failing_call_fails_its_callers_and_nobody_else() -> None:
    async def run() -> tuple[Sequence[BaseException | int], int]:
        batcher = Batcher(Doubler(0).run, max_size=10)
        broken = await asyncio.gather(batcher.submit(-1), batcher.submit(1), return_exceptions=True)
        return broken, await batcher.submit(2)

    broken, after = asyncio.run(run())

    assert [type(b) for b in broken] == [ValueError, ValueError]
    assert after == 4


def test_who_gives_up_waiting_is_not_asked_for() -> None:
    doubler = Doubler(0.05)

    async def run() -> None:
        batcher = Batcher(doubler.run, max_size=10)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.submit(1)
        await first
        assert await batcher.submit(2) == 4

    asyncio.run(run())

    assert doubler.sizes == [1, 1]


def test_those_who_gave_up_do_not_pile_up_behind_a_hung_call() -> None:
    async def hang(_: Sequence[int]) -> list[int]:
        await asyncio.sleep(60)
        return []

    async def run() -> int:
        batcher = Batcher(hang, max_size=10)
        for _ in range(200):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0005):
                    await batcher.submit(1)
        return len(batcher._waiting)

    assert asyncio.run(run()) < 5


def test_a_call_that_is_cut_short_frees_its_place() -> None:
    async def hang(_: Sequence[int]) -> list[int]:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
        return []

    async def run() -> None:
        batcher = Batcher(hang, max_size=10)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await batcher.submit(1)

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_call_that_somebody_cancels_is_an_error_to_those_who_wait_and_frees_its_place() -> None:
    calls = 0

    async def cancelled_once(items: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return list(items)

    async def run() -> int:
        batcher = Batcher(cancelled_once, max_size=10)
        with pytest.raises(ConnectionError, match="was cancelled"):
            await batcher.submit(1)
        return await batcher.submit(2)

    assert asyncio.run(asyncio.wait_for(run(), 5)) == 2
