"""A shadow's path: off the answer's way, bounded in every direction, and every sampled request accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from service import metrics
from service.breaker import Breaker
from service.pieces import TooLate
from service.prediction_log import Log
from service.roles import Role
from service.runners import Runner, Scored, is_probability
from service.sampling import Sampling

logger = logging.getLogger("understudy")

Record = Mapping[str, Any]

# Records written in one go; what waits behind them is a caller. Each write wakes the event loop once more.
_AT_ONCE = 64
# Processor time that a call is to take at most, in seconds; a slow model is given fewer rows at a time.
_CALL_S = 0.02
# Rows of the first call, which tells how slow the model is.
_FIRST = 8
# Unused processor time that a shadow may save up, in seconds of its allowance.
_SAVED_S = 1.0
# A gateway that computes this share of the time has nothing to give away,
_BUSY = 0.5
# and leaves a shadow that cannot keep up this share of its allowance, so that evidence goes on growing.
_LEAST = 0.05
# Time over which it is judged whether a shadow can keep up, in seconds: a burst says nothing.
_JUDGED_S = 2.0
# The longest rest, in seconds: the gateway may have more to give by then, and the shadow another model.
_REST_S = 10.0


@dataclass(frozen=True)
class Bounds:
    """What the shadow may cost.

    Attributes:
        queue: most requests waiting; more are dropped.
        batch: most rows in one call.
        gather_s: longest a request waits for others to go with it.
        timeout_s: bound on one call.
        cpu: processors its calls may take on average; 0 any. A shadow that would need more for all its requests gets
            less, down to a twentieth, while its gateway is busy.
    """

    queue: int = 1000
    batch: int = 64
    gather_s: float = 0.05
    timeout_s: float = 1.0
    cpu: float = 0.0


class Rehearsal(NamedTuple):
    """One request on its way to a shadow: the same vector the primary got."""

    request_id: str
    at: datetime
    vector: Mapping[str, Any]


class Rehearser(Protocol):
    """Whoever rehearses: a shadow's actor, or the primary once more (:class:`service.cast.Echo`)."""

    @property
    def role(self) -> Role:
        """The slot, as the record names it."""
        ...

    @property
    def runner(self) -> Runner | None:
        """Who scores; None while nobody does."""
        ...

    @property
    def breaker(self) -> Breaker:
        """Whether it is asked."""
        ...


class ShadowPath:
    """Queues sampled vectors, scores them in batches, writes one shadow record for each.

    Args:
        actor: who rehearses; nothing is sampled while nobody plays.
        log: where shadow records go.
        valid: whether a score counts as one.
        busy: share of a processor that the gateway has used since it was last asked.
    """

    def __init__(
        self,
        actor: Rehearser,
        log: Log,
        sampling: Sampling,
        bounds: Bounds,
        *,
        valid: Callable[[Any], bool] = is_probability,
        busy: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._actor = actor
        self.slot = actor.role
        self._log = log
        self._sampling = sampling
        self._bounds = bounds
        self._valid = valid
        self._busy = busy
        self._waiting: deque[Rehearsal] = deque()
        # Offered, and not yet in the metrics.
        self._uncounted = 0
        # Records of requests that the queue had no room for, not written yet.
        self._refused: list[Record] = []
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._rested = 0.0
        # Processors it would need for all that is offered; what was offered since that was last estimated, and when.
        self._needed = 0.0
        self._offered, self._since = 0, time.monotonic()
        # Whether the last rows were scored, or could have been.
        self._asked = True
        # Rows for the next call.
        self._most = min(_FIRST, bounds.batch)
        self._queued = metrics.SHADOW_QUEUE.labels(self.slot)
        self._seconds = metrics.SHADOW_SECONDS.labels(self.slot)

    def samples(self, request_id: str, request: Mapping[str, Any]) -> bool:
        """Whether this request is to be rehearsed."""
        return self._sampling.takes(request_id, request) and self._actor.runner is not None

    def offer(self, rehearsal: Rehearsal) -> None:
        """Take a sampled request without waiting; when the queue is full it is dropped and counted."""
        self._uncounted += 1
        self._offered += 1
        if self._closing.is_set():
            self._drop([rehearsal], "shutdown")
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())
        if len(self._waiting) >= self._bounds.queue:
            self._refuse(rehearsal, "cpu_limit" if time.monotonic() < self._rested else "queue_full")
            return
        self._waiting.append(rehearsal)
        self._some.set()
        if len(self._waiting) >= self._together:
            self._full.set()

    async def close(self, drain_s: float) -> None:
        """Score what still waits, for at most ``drain_s`` seconds; the rest is dropped as ``shutdown``."""
        for event in (self._closing, self._full, self._some):
            event.set()
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=drain_s)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._drop(self._take(), "shutdown")
        self._tell_refused()

    async def _work(self) -> None:
        while True:
            await self._rest()
            while not self._waiting:
                if self._closing.is_set():
                    return
                self._some.clear()
                await self._some.wait()
            await self._gather()
            self._tell_refused()
            rows = self._take(self._most)
            self._queued.set(len(self._waiting))
            try:
                await self._rehearse(rows)
            except Exception:  # the shadow's trouble, whatever it is, must not end its path
                logger.exception("%s could not rehearse", self.slot)
                self._drop(rows, "error")
            finally:
                # What is left here is left by a cancellation.
                self._drop(rows, "shutdown")

    async def _rest(self) -> None:
        """Wait until the shadow's calls have earned their next one; those who wait for an answer need the processor."""
        rest = self._rested - time.monotonic()
        if rest <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rest):
                await self._closing.wait()

    @property
    def _together(self) -> int:
        """Rows that are waited for; where nobody is asked, as many as are written together."""
        return self._most if self._asked else max(self._most, min(_AT_ONCE, self._bounds.batch))

    def _spent(self, start: float, cpu_s: float, rows: int) -> None:
        fitting = int(_CALL_S * rows / cpu_s) if cpu_s else self._bounds.batch
        self._most = max(1, min(self._bounds.batch, fitting))
        if self._bounds.cpu:
            now = time.monotonic()
            earned = max(self._rested, start - _SAVED_S) + cpu_s / self._allowance(cpu_s / rows, now)
            self._rested = min(earned, now + _REST_S)

    def _allowance(self, row_s: float, now: float) -> float:
        # One that keeps up sees every request, which is worth its price. One that does not sees some of them in any
        # case, and a verdict needs thousands, not millions: the processor is for those who wait.
        passed = max(now - self._since, 1e-3)
        weight = 1 - math.exp(-passed / _JUDGED_S)
        self._needed += weight * (row_s * self._offered / passed - self._needed)
        self._offered, self._since = 0, now
        over = min(1.0, max(0.0, self._needed / self._bounds.cpu - 1))
        return self._bounds.cpu * max(_LEAST, 1 - over * min(1.0, self._busy() / _BUSY))

    async def _gather(self) -> None:
        # A call costs the gateway about the same for one row as for many, and nobody waits for the shadow.
        if self._closing.is_set() or len(self._waiting) >= self._together:
            return
        if await self._fills(self._bounds.gather_s) or len(self._waiting) < self._bounds.batch / 8:
            return
        # Many come: fewer calls cost everybody less.
        await self._fills(2 * self._bounds.gather_s)

    async def _fills(self, seconds: float) -> bool:
        """Whether a whole batch waits before so much time is over."""
        self._full.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._full.wait()
        return False

    def _take(self, most: int | None = None) -> list[Rehearsal]:
        count = len(self._waiting) if most is None else min(most, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    async def _rehearse(self, rows: list[Rehearsal]) -> None:
        """Score rows and write their records, taking each out of the list as its record is written."""
        result = await self._ask(rows)
        self._asked = result not in ("absent", "circuit_open")
        if not self._asked:
            # The others that wait would not be scored either.
            rows += self._take()
        for start in range(0, count := len(rows), _AT_ONCE):
            # Whoever came in meanwhile is answered first.
            await asyncio.sleep(0)
            part = rows[:_AT_ONCE]
            if isinstance(result, str):
                self._keep([self._record(row, "dropped", result) for row in part])
            else:
                scored, seconds = result
                self._keep(self._scored(part, scored, scored.scores[start : start + _AT_ONCE], seconds, count))
            del rows[:_AT_ONCE]

    async def _ask(self, rows: Sequence[Rehearsal]) -> tuple[Scored, float] | str:
        """Return the scores and the seconds they took, or why there are none."""
        runner = self._actor.runner
        if runner is None:
            return "absent"
        ticket = self._actor.breaker.admit()
        if ticket is None:
            return "circuit_open"
        start, begun = time.perf_counter(), time.monotonic()
        failed, limit = True, self._bounds.timeout_s
        try:
            async with asyncio.timeout(limit):
                scored = await runner.score([row.vector for row in rows], begun + limit, gently=True)
            # Calls that fail do not say what they took; too many of them are the breaker's affair.
            self._spent(begun, scored.cpu_s, len(rows))
            if len(scored.scores) != len(rows):
                return "error"
            failed = not any(self._valid(score) for score in scored.scores)
        except TimeoutError as error:
            # Fewer rows may come back in time. One that is hung does not say what it took.
            fewer = max(1, self._most // 4)
            if isinstance(error, TooLate):
                self._spent(begun, error.cpu_s, len(rows))
            self._most = min(self._most, fewer)
            return "timeout"
        except asyncio.CancelledError:
            ticket.withdraw()
            raise
        except Exception:  # the shadow may fail in any way; the caller's answer is long gone
            return "error"
        finally:
            # Slowness is no fault of a shadow: it is measured, and compared.
            ticket.settle(0.0, failed=failed)
        seconds = time.perf_counter() - start
        self._seconds.observe(seconds)
        return scored, seconds

    def _scored(
        self, rows: Sequence[Rehearsal], scored: Scored, scores: Sequence[float | None], seconds: float, batch: int
    ) -> list[Record]:
        common = {
            "shadow": self.slot,
            "model_version": scored.version,
            "model_digest": scored.digest,
            "latency_ms": round(seconds * 1000, 3),
            "batch": batch,
        }
        good: list[float] = []
        records: list[Record] = []
        for row, score in zip(rows, scores, strict=True):
            named = {"request_id": row.request_id, "at": row.at, **common}
            if score is not None and self._valid(score):
                good.append(score)
                records.append({**named, "outcome": "scored", "reason": None, "prediction": score})
            else:
                told = score if isinstance(score, int | float) else None
                records.append({**named, "outcome": "dropped", "reason": "invalid_output", "prediction": told})
        if self.slot != "primary":
            metrics.count_shadow_scores(self.slot, good)
        return records

    def _record(self, row: Rehearsal, outcome: str, reason: str | None) -> Record:
        empty = {"model_version": None, "model_digest": None, "prediction": None, "latency_ms": None, "batch": None}
        named = {"request_id": row.request_id, "at": row.at, "shadow": self.slot, "outcome": outcome, "reason": reason}
        return {**named, **empty}

    def _drop(self, rows: list[Rehearsal], reason: str) -> None:
        if rows:
            self._keep([self._record(row, "dropped", reason) for row in rows])
            rows.clear()

    def _refuse(self, rehearsal: Rehearsal, reason: str) -> None:
        """Drop a request that another one waits behind: its record is written together with others, afterwards."""
        self._refused.append(self._record(rehearsal, "dropped", reason))
        if len(self._refused) == _AT_ONCE:
            asyncio.get_running_loop().call_soon(self._tell_refused)

    def _tell_refused(self) -> None:
        refused, self._refused = self._refused, []
        if refused:
            self._keep(refused)

    def _keep(self, records: Sequence[Record]) -> None:
        metrics.count_sampled(self.slot, self._uncounted)
        self._uncounted = 0
        for (outcome, reason), count in Counter((r["outcome"], r["reason"]) for r in records).items():
            metrics.count_rehearsals(self.slot, outcome, reason or "", count)
        lost = len(records) - self._log.extend(records)
        if lost:
            metrics.LOG_DROPS.labels("shadow").inc(lost)
