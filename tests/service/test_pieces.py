"""Many rows are scored a few at a time, by one model, and never later than they are wanted because of the rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from service.pieces import PIECE, Row, in_pieces


class Scorer:
    """Scores a row by its ``x``; remembers when it was asked and for how many rows."""

    def __init__(self, takes_s: float = 0.0, before: Callable[[int], None] = lambda _: None) -> None:
        self.digest, self.takes_s, self.before = "one", takes_s, before
        self.sizes: list[int] = []
        self.asked: list[float] = []

    def score(self, rows: Sequence[Row]) -> dict[str, Any]:
        self.before(len(self.sizes))
        self.asked.append(time.monotonic())
        self.sizes.append(len(rows))
        time.sleep(self.takes_s)
        return {"version": "1", "digest": self.digest, "scores": [row["x"] for row in rows], "cpu_s": 0.5}


def scored(scorer: Scorer, count: int, patience_s: float = 60.0) -> dict[str, Any]:
    """Score so many rows."""
    rows = [{"x": float(i)} for i in range(count)]
    return asyncio.run(in_pieces(scorer.score, rows, time.monotonic() + patience_s))


@pytest.mark.parametrize("count", [1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_every_row_gets_its_score_and_the_processor_time_adds_up(count: int) -> None:
    scorer = Scorer()

    answer = scored(scorer, count)

    assert answer["scores"] == [float(i) for i in range(count)]
    assert max(scorer.sizes) <= PIECE
    assert answer["cpu_s"] == 0.5 * len(scorer.sizes)


def test_it_rests_longer_than_it_works() -> None:
    scorer = Scorer(takes_s=0.01)
    begun = time.monotonic()

    scored(scorer, 4 * PIECE)

    assert time.monotonic() - begun >= 4 * 0.01 + 3 * 0.03


def test_a_call_that_would_be_late_is_not_rested_in() -> None:
    scorer = Scorer(takes_s=0.02)
    begun = time.monotonic()

    scored(scorer, 4 * PIECE, patience_s=0.2)

    # Four pieces and three rests took 0.26 s; there is time for one rest.
    assert time.monotonic() - begun < 0.2


def test_another_model_starts_from_the_first_row() -> None:
    def exchange(piece: int) -> None:
        if piece == 2:
            scorer.digest = "two"

    scorer = Scorer(before=exchange)

    answer = scored(scorer, 3 * PIECE)

    assert (answer["digest"], len(answer["scores"])) == ("two", 3 * PIECE)
    assert answer["scores"] == [float(i) for i in range(3 * PIECE)]
    assert scorer.sizes == [PIECE] * 6


def test_what_else_is_asked_gets_its_turn_between_pieces() -> None:
    scorer, turns = Scorer(), []

    async def run() -> None:
        rows = [{"x": 0.0}] * (4 * PIECE)
        task = asyncio.ensure_future(in_pieces(scorer.score, rows, time.monotonic()))
        while not task.done():
            await asyncio.sleep(0)
            turns.append(len(scorer.sizes))

    asyncio.run(run())

    assert {1, 2, 3} <= set(turns)
