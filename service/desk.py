"""The HTTP side of the gateway: raw bodies in, ready answers out, and no more at once than can be answered in time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from service import metrics
from service.clock import Clock
from service.door import Door
from service.errors import BadRequest, TooBusy
from service.prediction_log import Log
from service.routing import Router
from service.wire import Taken, refusal, refuse, reply

# Rows of a batch answered together; callers of single rows get their turn in between.
_TOGETHER = 32


class Desk:
    """Takes requests and answers them.

    Args:
        most: requests answered at once; 32 rows of a batch weigh as much as one request.
    """

    def __init__(self, door: Door, router: Router, labels: Log, clock: Clock, most: int) -> None:
        self._door = door
        self._router = router
        self._labels = labels
        self._clock = clock
        self._most = most
        self._inside = 0

    async def predict(self, taken: Taken) -> Response:
        """Answer one request."""
        try:
            with self._admitted(1):
                request = self._door.one(taken.opened())
                answer = await self._router.answer(request, parent=taken.traceparent)
        except BadRequest as error:
            return refuse("predict", error)
        return reply("predict", answer.told(), answer.stages_ms)

    async def predict_batch(self, taken: Taken) -> Response:
        """Answer a list of requests, row by row: an answer, or the row's error and problems."""
        try:
            rows = self._door.rows(taken.opened())
            with self._admitted(-(-len(rows) // _TOGETHER)):
                answers: list[dict[str, Any]] = []
                # The caller waits for all of them; a row has as long as the rows that go with it need.
                patience = 1 + min(len(rows), _TOGETHER) / 8
                for start in range(0, len(rows), _TOGETHER):
                    part = rows[start : start + _TOGETHER]
                    answers += await asyncio.gather(*(self._row(row, patience, taken.traceparent) for row in part))
        except BadRequest as error:
            return refuse("predict_batch", error)
        return reply("predict_batch", answers)

    async def _row(self, row: bytes, patience: float, parent: str | None) -> dict[str, Any]:
        try:
            request = self._door.one(row)
        except BadRequest as error:
            return refusal(error)
        answer = await self._router.answer(request, patience=patience, route="/predict_batch", parent=parent)
        return answer.told()

    def label(self, taken: Taken) -> Response:
        """Take ground truths: one object or a list; a list with one wrong entry is refused whole."""
        try:
            labels = self._door.labels(taken.opened())
        except BadRequest as error:
            return refuse("labels", error)
        at = self._clock.now()
        kept = sum(self._labels.append({**label.model_dump(), "at": at}) for label in labels)
        metrics.LABELS.inc(kept)
        metrics.LOG_DROPS.labels("labels").inc(len(labels) - kept)
        return reply("labels", {"received": len(labels), "kept": kept})

    def _admitted(self, weight: int) -> _Inside:
        # One that weighs more than the limit is still admitted when nothing else is inside.
        if self._inside and self._inside + weight > self._most:
            raise TooBusy(self._most)
        return _Inside(self, weight)

    def _weigh(self, weight: int) -> None:
        self._inside += weight
        metrics.IN_PROGRESS.inc(weight)


class _Inside:
    """What is inside for as long as it is answered; a generator's context manager takes four times as long."""

    def __init__(self, desk: Desk, weight: int) -> None:
        self._desk = desk
        self._weight = weight

    def __enter__(self) -> None:
        self._desk._weigh(self._weight)

    def __exit__(self, *_: object) -> None:
        self._desk._weigh(-self._weight)
