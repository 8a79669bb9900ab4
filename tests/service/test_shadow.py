"""The shadow hurts nobody, and every sampled request is accounted for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.breaker import Breaker, Rules
from service.cast import Actor
from service.fakes import FakeRunner, MemoryLog
from service.pieces import TooLate
from service.runners import Runner, Scored
from service.sampling import Sampling
from service.shadow import Bounds, Rehearsal, ShadowPath
from tests.bundle import NOW


def made(
    runner: Runner | None,
    log: MemoryLog,
    sampling: Sampling | None = None,
    *,
    queue: int = 1000,
    batch: int = 4,
    gather_s: float = 0.0,
    timeout_s: float = 1.0,
) -> ShadowPath:
    """A path to a runner."""
    actor = Actor("shadow", runner, Breaker(Rules()))
    return ShadowPath(actor, log, sampling or Sampling(), Bounds(queue, batch, gather_s, timeout_s))


def rehearse(
    count: int, runner: FakeRunner, *, queue: int = 1000, drain_s: float = 5.0, timeout_s: float = 0.05
) -> Any:
    """Offer ``count`` requests at once, drain, and return the ledger by (outcome, reason)."""
    log = MemoryLog()

    async def run() -> None:
        path = made(runner, log, queue=queue, timeout_s=timeout_s)
        for i in range(count):
            path.offer(Rehearsal(str(i), NOW, {"x": i}))
        await path.close(drain_s)

    asyncio.run(run())
    assert len({r["request_id"] for r in log.records}) == len(log.records)
    return Counter((r["outcome"], r["reason"]) for r in log.records)


def fails(_: Mapping[str, Any]) -> float:
    """Raise as a dead runner does."""
    msg = "gone"
    raise ConnectionError(msg)


@pytest.mark.parametrize(
    ("runner", "ledger"),
    [
        (FakeRunner(lambda _: 0.5), {("scored", None): 10}),
        (FakeRunner(fails), {("dropped", "error"): 10}),
        (FakeRunner(lambda _: 0.5, delay_s=9), {("dropped", "timeout"): 10}),
        (FakeRunner(lambda _: math.nan), {("dropped", "invalid_output"): 10}),
        (FakeRunner(lambda _: None), {("dropped", "invalid_output"): 10}),
    ],
    ids=["well", "dead", "hung", "nan", "null"],
)
def test_each_way_of_failing_has_its_reason(runner: FakeRunner, ledger: dict[Any, int]) -> None:
    assert rehearse(10, runner) == ledger


def test_more_than_the_queue_holds_is_dropped_not_waited_for() -> None:
    assert rehearse(10, FakeRunner(lambda _: 0.5), queue=4) == {("scored", None): 4, ("dropped", "queue_full"): 6}


def test_what_the_queue_has_no_room_for_is_written_together_and_after_the_answer() -> None:
    log, kept = MemoryLog(), []

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5, delay_s=9), log, queue=4)
        for i in range(4 + 19):
            path.offer(Rehearsal(str(i), NOW, {}))
        kept.append(len(log.records))
        await asyncio.sleep(0)
        kept.append(len(log.records))
        await path.close(0.01)

    asyncio.run(run())

    assert kept == [0, 19]
    assert Counter(r["reason"] for r in log.records) == {"queue_full": 19, "shutdown": 4}


class Costly(FakeRunner):
    """A runner that says each of its calls took 20 ms of a processor; ``hung``, its calls end with their time."""

    def __init__(self, *, hung: bool = False) -> None:
        super().__init__(lambda _: 0.5)
        self.calls: list[float] = []
        self.hung = hung
        self.cpu_s = 0.02

    async def score(self, rows: Sequence[Mapping[str, Any]], end: float = math.inf, *, gently: bool = False) -> Scored:
        self.calls.append(time.monotonic())
        if self.hung:
            await asyncio.sleep(9)
        return replace(await super().score(rows, end), cpu_s=self.cpu_s)


def working(
    runner: Costly,
    cpu: float,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    timeout_s: float = 1.0,
    busy: float = 0.0,
) -> tuple[Any, list[float]]:
    """Offer far more than fits for a while, with nothing saved up; return the ledger and when calls began."""
    monkeypatch.setattr("service.shadow._SAVED_S", 0.0)
    log = MemoryLog()

    async def run() -> None:
        actor = Actor("shadow", runner, Breaker(Rules(min_calls=1000)))
        path = ShadowPath(actor, log, Sampling(), Bounds(8, 4, 0.0, timeout_s, cpu), busy=lambda: busy)
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for _ in range(4):
                path.offer(Rehearsal(str(number), NOW, {}))
                number += 1
            await asyncio.sleep(0.001)
        await path.close(0)

    asyncio.run(run())
    begun = runner.calls[0]
    calls = [call for call in runner.calls if call < begun + seconds - 0.01]
    return Counter((r["outcome"], r["reason"]) for r in log.records), calls


def test_a_costly_shadow_takes_the_processor_it_may_and_says_what_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, calls = working(Costly(), 0.2, 0.45, monkeypatch)

    # 20 ms at a fifth of a processor: a call begins every 100 ms.
    assert min(after - before for before, after in pairwise(calls)) >= 0.09
    assert ledger[("dropped", "cpu_limit")] > 0


@pytest.mark.parametrize(("busy", "least_s"), [(0.25, 0.038), (0.9, 0.38)])
def test_one_that_cannot_keep_up_gets_less_of_a_busy_gateways_machine(
    busy: float, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.shadow._JUDGED_S", 0.02)

    _, calls = working(Costly(), 1.0, 1.5, monkeypatch, busy=busy)

    # 20 ms at half of a processor where the gateway is busy a quarter of the time; at a twentieth where it has nothing
    # to give. The first calls were made before that was known.
    assert len(calls) >= 5
    assert min(after - before for before, after in pairwise(calls[-3:])) >= least_s


def test_one_that_could_keep_up_is_not_given_less_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.shadow._SAVED_S", 0.0)
    monkeypatch.setattr("service.shadow._JUDGED_S", 0.05)
    log = MemoryLog()

    class Pausing(Costly):
        async def score(
            self, rows: Sequence[Mapping[str, Any]], end: float = math.inf, *, gently: bool = False
        ) -> Scored:
            if len(self.calls) == 5:
                await asyncio.sleep(0.3)
            # 1 ms a row: a fifth of what it may take.
            self.cpu_s = 0.001 * len(rows)
            return await super().score(rows, end)

    async def run() -> None:
        path = ShadowPath(
            Actor("shadow", Pausing(), Breaker(Rules())),
            log,
            Sampling(),
            Bounds(16, 8, 0.0, 1.0, 1.0),
            busy=lambda: 1.0,
        )
        for number in range(200):
            path.offer(Rehearsal(str(number), NOW, {}))
            await asyncio.sleep(0.005)
        await path.close(1)

    asyncio.run(run())

    dropped = [int(r["request_id"]) for r in log.records if r["outcome"] == "dropped"]
    # What came when the queue was full of those that the pause kept waiting, and nothing after that.
    assert 5 < len(dropped) < 60
    assert max(dropped) < 120


def test_no_rest_is_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.shadow._REST_S", 0.1)
    monkeypatch.setattr("service.shadow._SAVED_S", 0.0)

    _, calls = working(Costly(), 0.001, 0.45, monkeypatch)

    assert len(calls) == pytest.approx(4, abs=1)


def test_what_is_given_up_for_lack_of_time_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Costly):
        async def score(
            self, rows: Sequence[Mapping[str, Any]], end: float = math.inf, *, gently: bool = False
        ) -> Scored:
            self.calls.append(time.monotonic())
            raise TooLate("too late", 0.1)

    ledger, calls = working(Late(), 1.0, 0.45, monkeypatch)

    assert min(after - before for before, after in pairwise(calls)) >= 0.09
    assert ledger[("dropped", "timeout")] > 0
    assert ledger[("dropped", "cpu_limit")] > 0


@pytest.mark.parametrize("why", ["absent", "circuit_open"])
def test_where_nobody_is_asked_records_are_written_together(why: str) -> None:
    class Counting(MemoryLog):
        writes = 0

        def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
            self.writes += 1
            return super().extend(records)

    log = Counting()

    async def run() -> None:
        actor = Actor("shadow", FakeRunner(lambda _: 0.5, delay_s=9), Breaker(Rules(min_calls=5)))
        path = ShadowPath(actor, log, Sampling(), Bounds(1000, 64, 0.02, 0.01))
        for number in range(20):
            path.offer(Rehearsal(str(number), NOW, {}))
        # Calls that time out bring it down to one row at a time.
        while why == "circuit_open" and actor.breaker.state != "open":
            path.offer(Rehearsal("more", NOW, {}))
            await asyncio.sleep(0.001)
        if why == "absent":
            actor.runner = None
        log.writes, before = 0, len(log.records)
        for number in range(400):
            path.offer(Rehearsal(f"later {number}", NOW, {}))
            await asyncio.sleep(0)
        await path.close(1)
        assert len(log.records) - before >= 400

    asyncio.run(run())

    assert Counter(r["reason"] for r in log.records)[why] >= 400
    assert log.writes < 40


def test_a_stopped_shadow_took_no_processor_and_is_asked_as_soon_as_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Costly(hung=True)

    ledger, calls = working(runner, 0.001, 0.2, monkeypatch, timeout_s=0.02)

    assert len(calls) >= 3
    assert ledger[("dropped", "cpu_limit")] == 0


def test_without_a_limit_it_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Costly()

    ledger, calls = working(runner, 0.0, 0.2, monkeypatch)

    assert len(calls) > 20
    assert ledger[("dropped", "cpu_limit")] == 0


def test_a_slow_model_is_given_fewer_rows_at_a_time() -> None:
    runner, log = Costly(), MemoryLog()

    async def run() -> None:
        path = ShadowPath(Actor("shadow", runner, Breaker(Rules())), log, Sampling(), Bounds(batch=40, gather_s=0.0))
        for cpu_s in (0.0, 0.08):
            runner.cpu_s = cpu_s
            for number in range(88):
                path.offer(Rehearsal(f"{number} at {cpu_s}", NOW, {}))
            await asyncio.sleep(0.05)
        await path.close(1)

    asyncio.run(run())

    # The first call is a small one. 0.08 s are four times what a call may take: a quarter of its rows in the next one.
    assert [r["batch"] for r in log.records[:88]] == [8] * 8 + [40] * 80
    assert [r["batch"] for r in log.records[88:]] == [40] * 40 + [10] * 10 + [2] * 2 + [1] * 36


def test_a_call_that_was_not_answered_in_time_is_followed_by_smaller_ones() -> None:
    runner, log = FakeRunner(lambda _: 0.5, delay_s=9), MemoryLog()

    async def run() -> None:
        path = made(runner, log, batch=40, timeout_s=0.01)
        for number in range(12):
            path.offer(Rehearsal(str(number), NOW, {}))
        await asyncio.sleep(0.02)
        await path.close(1)

    asyncio.run(run())

    assert len(runner.rows) == 12
    assert Counter(r["reason"] for r in log.records) == {"timeout": 12}


def test_what_was_not_used_may_be_used_at_once() -> None:
    runner, log = Costly(), MemoryLog()

    async def run() -> None:
        path = ShadowPath(
            Actor("shadow", runner, Breaker(Rules())), log, Sampling(), Bounds(batch=1, gather_s=0.0, cpu=0.1)
        )
        for number in range(6):
            path.offer(Rehearsal(str(number), NOW, {}))
        await asyncio.sleep(0.05)
        assert len(runner.calls) == 6
        path.offer(Rehearsal("one more", NOW, {}))
        await asyncio.sleep(0.05)
        assert len(runner.calls) == 6
        # Nobody is kept waiting at the end.
        await path.close(1)

    asyncio.run(run())

    assert [r["outcome"] for r in log.records] == ["scored"] * 7


def test_what_cannot_be_scored_before_the_drain_ends_is_dropped_as_shutdown() -> None:
    ledger = rehearse(10, FakeRunner(lambda _: 0.5, delay_s=30), drain_s=0.01, timeout_s=60)

    assert ledger == {("dropped", "shutdown"): 10}


@pytest.mark.parametrize("score", ["0.5", [1], True, object()], ids=["text", "list", "bool", "object"])
def test_an_answer_of_the_wrong_type_costs_its_rows_and_not_the_worker(score: Any) -> None:
    ledger = rehearse(12, FakeRunner(lambda row: score if row["x"] < 4 else 0.5))

    assert ledger == {("dropped", "invalid_output"): 4, ("scored", None): 8}


class Short(FakeRunner):
    """A runner that returns one score too few."""

    async def score(self, rows: Sequence[Mapping[str, Any]], end: float = math.inf, *, gently: bool = False) -> Scored:
        full = await super().score(rows, end)
        return Scored(full.version, full.digest, full.scores[:-1])


class Faulty(MemoryLog):
    """Fails in a way nobody foresaw, once."""

    failed = False

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Fail at the first records, and keep all others."""
        if not self.failed:
            self.failed = True
            msg = "a fault nobody foresaw"
            raise RuntimeError(msg)
        return super().extend(records)


def test_a_fault_nobody_foresaw_costs_the_rows_of_its_call_only() -> None:
    log = Faulty()

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), log, batch=4)
        for i in range(8):
            path.offer(Rehearsal(str(i), NOW, {"x": i}))
        await path.close(5.0)

    asyncio.run(run())

    assert [r["request_id"] for r in log.records] == [str(i) for i in range(8)]
    assert [r["reason"] for r in log.records] == ["error"] * 4 + [None] * 4


class Broken(MemoryLog):
    """Fails whenever it is to keep something."""

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Keep nothing."""
        msg = "a log that is broken"
        raise RuntimeError(msg)


def test_a_log_that_is_broken_does_not_keep_a_service_from_ending() -> None:
    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), Broken(), batch=4)
        for i in range(4):
            path.offer(Rehearsal(str(i), NOW, {"x": i}))
        await path.close(5.0)

    asyncio.run(run())


def test_a_large_call_is_written_in_parts_between_which_others_are_answered() -> None:
    log, seen = MemoryLog(), []

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), log, batch=200)
        path.offer(Rehearsal("first", NOW, {"x": 0}))
        while not log.records:
            await asyncio.sleep(0)
        log.records.clear()
        for i in range(200):
            path.offer(Rehearsal(str(i), NOW, {"x": 0}))
        while len(log.records) < 200:
            await asyncio.sleep(0)
            seen.append(len(log.records))
        await path.close(5.0)

    asyncio.run(run())

    assert sorted(set(seen) - {0}) == [64, 128, 192, 200]
    assert [r["batch"] for r in log.records] == [200] * 200


def test_too_few_scores_are_an_error_of_the_whole_call() -> None:
    assert rehearse(8, Short(lambda _: 0.5)) == {("dropped", "error"): 8}


def test_what_comes_after_closing_is_dropped_as_shutdown() -> None:
    log = MemoryLog()

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), log, queue=9)
        path.offer(Rehearsal("a", NOW, {}))
        await path.close(1)
        path.offer(Rehearsal("b", NOW, {}))

    asyncio.run(run())

    assert [(r["request_id"], r["reason"]) for r in log.records] == [("a", None), ("b", "shutdown")]


@given(count=st.integers(1, 40), queue=st.integers(1, 20), bad=st.sets(st.integers(0, 39)))
def test_sampled_is_scored_plus_dropped(count: int, queue: int, bad: set[int]) -> None:
    ledger = rehearse(count, FakeRunner(lambda row: math.nan if row["x"] in bad else 0.5), queue=queue)

    assert sum(ledger.values()) == count


def sampled(share: float, key: str = "") -> Callable[[str, Mapping[str, Any]], bool]:
    """The sampling decision at a share."""
    return made(FakeRunner(lambda _: 0.5), MemoryLog(), Sampling(share, key)).samples


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_sampling_keeps_its_share_and_is_the_same_for_the_same_id(share: float) -> None:
    ids = [f"request-{i}" for i in range(4000)]

    kept = [i for i in ids if sampled(share)(i, {})]

    assert abs(len(kept) / len(ids) - share) < 0.03
    assert kept == [i for i in ids if sampled(share)(i, {})]


def test_a_sampling_key_falls_one_way_whatever_the_request() -> None:
    takes = sampled(0.5, "user")

    drawn = {(user, takes(f"{user}-{n}", {"user": user})) for user in range(400) for n in range(5)}

    assert len(drawn) == 400
    assert abs(sum(taken for _, taken in drawn) / 400 - 0.5) < 0.1


def test_nothing_is_sampled_while_no_model_plays_the_shadow() -> None:
    path = made(None, MemoryLog())

    assert not any(path.samples(str(i), {}) for i in range(100))


def test_requests_wait_for_each_other_a_little() -> None:
    log = MemoryLog()
    runner = FakeRunner(lambda _: 0.5)

    async def run() -> None:
        path = made(runner, log, gather_s=0.2, batch=32)
        for i in range(3):
            path.offer(Rehearsal(str(i), NOW, {}))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)

    asyncio.run(run())

    assert [r["batch"] for r in log.records] == [3, 3, 3]


def test_where_many_come_they_wait_for_more_of_them_a_little_longer() -> None:
    log = MemoryLog()

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), log, gather_s=0.1, batch=32)
        for number in range(6):
            path.offer(Rehearsal(str(number), NOW, {}))
        await asyncio.sleep(0.15)
        path.offer(Rehearsal("late", NOW, {}))
        await asyncio.sleep(0.25)

    asyncio.run(run())

    assert [r["batch"] for r in log.records] == [7] * 7


def test_a_full_batch_does_not_wait() -> None:
    log = MemoryLog()

    async def run() -> None:
        path = made(FakeRunner(lambda _: 0.5), log, gather_s=60, batch=4)
        for i in range(8):
            path.offer(Rehearsal(str(i), NOW, {}))
        await asyncio.sleep(0.2)

    asyncio.run(run())

    assert [r["batch"] for r in log.records] == [4] * 8


def test_a_dead_shadow_is_no_longer_asked_and_its_requests_are_counted() -> None:
    runner = FakeRunner(fails)

    ledger = rehearse(100, runner)

    assert ledger == {("dropped", "error"): 40, ("dropped", "circuit_open"): 60}
    assert len(runner.rows) == 40


def test_a_shadow_that_leaves_takes_what_waits_with_it() -> None:
    log = MemoryLog()

    async def run() -> None:
        actor = Actor("shadow", FakeRunner(lambda _: 0.5), Breaker(Rules()))
        path = ShadowPath(actor, log, Sampling(), Bounds(gather_s=0.05))
        path.offer(Rehearsal("a", NOW, {}))
        actor.runner = None
        await path.close(1)

    asyncio.run(run())

    assert [(r["outcome"], r["reason"]) for r in log.records] == [("dropped", "absent")]
