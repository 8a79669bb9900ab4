"""Scores many rows a few at a time and rests in between: for a model that nobody waits for, beside those somebody does.

Two processors of a virtual machine are often two threads of one core, and what one of them computes slows the other
down, however nice it is. 256 rows in one go made one answer in a hundred a fifth longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Rows scored in one go. Fewer cost more each, because the model is cold again after a rest.
PIECE = 32
# Of a slow model fewer: a piece takes about this long, in seconds.
_PIECE_S = 0.001
# What is not known yet is tried on a few.
_FIRST = 4
# Rest after a piece, in times of what it took.
_REST = 3.0


class TooLate(TimeoutError):
    """The rows would not have been scored in time.

    Attributes:
        cpu_s: processor time that was spent on those that were, in seconds.
    """

    def __init__(self, text: str, cpu_s: float) -> None:
        super().__init__(text)
        self.cpu_s = cpu_s


class Pieces:
    """Scores in pieces, and remembers how long a row takes.

    Args:
        score: as :meth:`service.link.Scorer.score`.
        cpu: processors that all calls may take; rests leave it at that, and are never more than three times the work. 0
            any: no rests.
    """

    def __init__(self, score: Callable[[Sequence[Row]], dict[str, Any]], cpu: float = 0.1) -> None:
        self._score = score
        self._rest = max(0.0, min(_REST, 1 / cpu - 1)) if cpu else 0.0
        self._row_s = 0.0

    @property
    def size(self) -> int:
        """Rows of the next piece."""
        return max(1, min(PIECE, int(_PIECE_S / self._row_s))) if self._row_s else _FIRST

    async def score(self, rows: Sequence[Row], end: float) -> dict[str, Any]:
        """Have rows scored by one model, with rests as long as half of the time for the call allows.

        Args:
            end: monotonic second after which nobody wants the answer.

        Raises:
            TooLate: when not all rows can be scored before it; nothing more is computed for them.
        """
        begun = time.monotonic()
        answer: dict[str, Any] = {}
        scores: list[float | None] = []
        cpu_s, error = 0.0, None
        while len(scores) < len(rows):
            part = rows[len(scores) : len(scores) + self.size]
            since = time.monotonic()
            try:
                before, answer = answer, self._score(part)
            except Exception as failed:
                if len(part) > 1:
                    raise
                # A row that the model cannot take does not cost the others their score.
                error = failed
                scores.append(None)
                now = time.monotonic()
                cpu_s += now - since
            else:
                if len(answer["scores"]) != len(part):
                    msg = f"the model gave {len(answer['scores'])} scores for {len(part)} rows"
                    raise ValueError(msg)
                now = time.monotonic()
                self._row_s = max((now - since) / len(part), 1e-9)
                cpu_s += answer["cpu_s"]
                if before and (before["version"], before["digest"]) != (answer["version"], answer["digest"]):
                    # Another model has taken the place: all rows of a call are scored by one.
                    answer, scores = {}, []
                    continue
                scores += answer["scores"]
            if left := len(rows) - len(scores):
                if now + self._row_s * min(self.size, left) >= end:
                    msg = f"too late: {len(scores)} of {len(rows)} rows were scored in time"
                    raise TooLate(msg, cpu_s)
                unhurried = now + left * self._row_s * (1 + self._rest) < (begun + end) / 2
                await asyncio.sleep(self._rest * (now - since) if unhurried else 0)
        if not answer and error is not None:
            raise error
        return {**answer, "scores": scores, "cpu_s": cpu_s}
