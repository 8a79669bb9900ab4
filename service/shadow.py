"""The shadow's path: off the answer's way, bounded in every direction, and every sampled request accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service import metrics
from service.prediction_log import Log
from service.runners import Runner, Scored, is_probability


@dataclass(frozen=True)
class Rehearsal:
    """One request on its way to the shadow: the same vector the primary got."""

    request_id: str
    at: datetime
    vector: Mapping[str, Any]


class ShadowPath:
    """Queues sampled vectors, scores them in batches, writes one shadow record for each.

    Args:
        runner: the shadow's runner; None when no model plays the shadow (nothing is sampled then).
        log: where shadow records go.
        sample: share of request ids rehearsed, 0 to 1; the same id always falls the same way.
        queue: most requests waiting; more are dropped and counted.
        batch: most rows in one call.
        timeout_s: bound on one call.
    """

    def __init__(
        self, runner: Runner | None, log: Log, *, sample: float, queue: int, batch: int, timeout_s: float
    ) -> None:
        self._runner = runner
        self._log = log
        self._sample = sample if runner is not None else 0.0
        self._waiting: asyncio.Queue[Rehearsal] = asyncio.Queue(queue)
        self._batch = batch
        self._timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def samples(self, request_id: str) -> bool:
        """Whether this request is to be rehearsed."""
        return zlib.crc32(request_id.encode()) < self._sample * 2**32

    def offer(self, rehearsal: Rehearsal) -> None:
        """Take a sampled request without waiting; when the queue is full it is dropped and counted."""
        metrics.SHADOW_SAMPLED.inc()
        if self._closed:
            self._drop([rehearsal], "shutdown")
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())
        try:
            self._waiting.put_nowait(rehearsal)
        except asyncio.QueueFull:
            self._drop([rehearsal], "queue_full")
        metrics.SHADOW_QUEUE.set(self._waiting.qsize())

    async def close(self, drain_s: float) -> None:
        """Score what still waits, for at most ``drain_s`` seconds; the rest is dropped as ``shutdown``."""
        self._closed = True
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._waiting.join()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._drop(self._take(), "shutdown")

    async def _work(self) -> None:
        while True:
            rows = [await self._waiting.get()]
            rows += self._take(self._batch - 1)
            try:
                await self._rehearse(rows)
            except asyncio.CancelledError:
                self._drop(rows, "shutdown")
                raise
            finally:
                for _ in rows:
                    self._waiting.task_done()
                metrics.SHADOW_QUEUE.set(self._waiting.qsize())

    def _take(self, most: int | None = None) -> list[Rehearsal]:
        rows: list[Rehearsal] = []
        while not self._waiting.empty() and (most is None or len(rows) < most):
            rows.append(self._waiting.get_nowait())
        return rows

    async def _rehearse(self, rows: Sequence[Rehearsal]) -> None:
        assert self._runner is not None
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                scored = await self._runner.score([row.vector for row in rows])
        except TimeoutError:
            self._drop(rows, "timeout")
        except Exception:  # the shadow may fail in any way; the caller's answer is long gone
            self._drop(rows, "error")
        else:
            seconds = time.perf_counter() - start
            metrics.SHADOW_SECONDS.observe(seconds)
            if len(scored.scores) != len(rows):
                self._drop(rows, "error")
                return
            for row, score in zip(rows, scored.scores, strict=True):
                self._record(row, scored, score, seconds, len(rows))

    def _record(self, row: Rehearsal, scored: Scored, score: float | None, seconds: float, batch: int) -> None:
        valid = is_probability(score)
        if valid:
            metrics.SCORE.labels("shadow").observe(float(score or 0.0))
        self._write(
            row,
            outcome="scored" if valid else "dropped",
            reason=None if valid else "invalid_output",
            model_version=scored.version,
            model_digest=scored.digest,
            prediction=score if isinstance(score, int | float) else None,
            latency_ms=round(seconds * 1000, 3),
            batch=batch,
        )

    def _drop(self, rows: Sequence[Rehearsal], reason: str) -> None:
        for row in rows:
            self._write(row, outcome="dropped", reason=reason)

    def _write(self, row: Rehearsal, *, outcome: str, reason: str | None, **more: Any) -> None:
        empty = {"model_version": None, "model_digest": None, "prediction": None, "latency_ms": None, "batch": None}
        record = {"request_id": row.request_id, "at": row.at, "outcome": outcome, "reason": reason, **empty, **more}
        metrics.SHADOW.labels(outcome, reason or "").inc()
        if not self._log.append(record):
            metrics.LOG_DROPS.labels("shadow").inc()
