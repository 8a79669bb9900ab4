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
# Rest after a piece, in times of what it took.
_REST = 3.0


async def in_pieces(
    score: Callable[[Sequence[Row]], dict[str, Any]], rows: Sequence[Row], end: float
) -> dict[str, Any]:
    """Have rows scored by one model, with rests between the pieces as long as half of the time for the call allows.

    Args:
        score: as :meth:`service.link.Scorer.score`.
        end: monotonic second after which nobody wants the answer.
    """
    begun = time.monotonic()
    answer: dict[str, Any] = {}
    scores: list[float | None] = []
    cpu_s = 0.0
    while len(scores) < len(rows):
        since = time.monotonic()
        before, answer = answer, score(rows[len(scores) : len(scores) + PIECE])
        cpu_s += answer["cpu_s"]
        if before and (before["version"], before["digest"]) != (answer["version"], answer["digest"]):
            # Another model has taken the place: all rows of a call are scored by one.
            answer, scores = {}, []
            continue
        scores += answer["scores"]
        now = time.monotonic()
        pieces = -(-(len(rows) - len(scores)) // PIECE)
        if pieces:
            unhurried = now + pieces * (1 + _REST) * (now - since) < (begun + end) / 2
            await asyncio.sleep(_REST * (now - since) if unhurried else 0)
    return {**answer, "scores": scores, "cpu_s": cpu_s}
