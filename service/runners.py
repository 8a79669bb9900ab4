"""The gateway's way of asking the processes that hold the models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.batcher import Batcher
from service.link import Link

Row = Mapping[str, Any]
# A row, and the monotonic second after which nobody wants its score.
_Waiting = tuple[Row, float]


@dataclass(frozen=True)
class Scored:
    """What a runner answered: one score per row (None where the model gave no finite number), and who it is.

    Attributes:
        cpu_s: processor time the call took, in seconds.
    """

    version: str
    digest: str
    scores: tuple[float | None, ...]
    cpu_s: float = 0.0


def is_probability(score: Any) -> bool:
    """Whether a model's output can be passed on: a finite number from 0 to 1."""
    return isinstance(score, int | float) and not isinstance(score, bool) and 0.0 <= score <= 1.0


class Runner(Protocol):
    """Anything that scores rows."""

    async def score(self, rows: Sequence[Row], end: float, *, gently: bool = False) -> Scored:
        """Return one score per row; raises when it cannot.

        Args:
            rows: named values.
            end: monotonic second after which nobody wants the answer.
            gently: whether nobody waits for it either.
        """
        ...


class RemoteRunner:
    """Asks a runner over its link, concurrent rows together.

    Args:
        link: to the runner.
        max_size: most rows in one call.
        inflight: most calls under way at once; one more than one keeps the runner busy while answers travel.
    """

    def __init__(self, link: Link, *, max_size: int = 64, inflight: int = 2) -> None:
        self._link = link
        self._batcher: Batcher[tuple[Row, float], Scored] = Batcher(
            self._together, max_size=max_size, inflight=inflight
        )

    async def score(self, rows: Sequence[Row], end: float, *, gently: bool = False) -> Scored:
        """Return one score per row; all rows are scored by one model.

        Raises:
            LinkDown: when the runner is not there.
            RunnerRefused: when it has no model, or its model failed.
            TimeoutError: when it has not answered at ``end``, or given up before.
        """
        if len(rows) == 1 and not gently:
            return await self._batcher.submit((rows[0], end))
        return await self._call(rows, end, gently=gently)

    async def _together(self, waiting: Sequence[_Waiting]) -> list[Scored]:
        scored = await self._call([row for row, _ in waiting], max(end for _, end in waiting))
        each = scored.cpu_s / len(waiting)
        return [Scored(scored.version, scored.digest, (score,), each) for score in scored.scores]

    async def _call(self, rows: Sequence[Row], end: float, *, gently: bool = False) -> Scored:
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            answer = await self._link.call(rows, end, gently=gently)
        scores = tuple(answer["scores"])
        if len(scores) != len(rows):
            msg = f"runner returned {len(scores)} scores for {len(rows)} rows"
            raise ValueError(msg)
        return Scored(str(answer["version"]), str(answer["digest"]), scores, float(answer["cpu_s"]))
