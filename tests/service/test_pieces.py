"""Many rows are scored a few at a time, by one model, and never later than they are wanted because of the rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from service.pieces import PIECE, Pieces, Row, TooLate


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


class Clock:
    """Stands still but for the work that is told, and the rests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.rests: list[float] = []
        monkeypatch.setattr("service.pieces.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("service.pieces.asyncio", SimpleNamespace(sleep=self._sleep))

    def works(self, seconds: float) -> Callable[[int], None]:
        """What has each piece take so long."""

        def work(_: int) -> None:
            self.now += seconds

        return work

    async def _sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def scored(scorer: Scorer, count: int, patience_s: float = 60.0) -> dict[str, Any]:
    """Score so many rows."""
    rows = [{"x": float(i)} for i in range(count)]
    return asyncio.run(Pieces(scorer.score).score(rows, time.monotonic() + patience_s))


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

    scored(scorer, 7)

    # Four rows, and then one by one: a row takes longer than a piece should.
    assert scorer.sizes == [4, 1, 1, 1]
    assert time.monotonic() - begun >= 4 * 0.01 + 3 * 0.03


def test_a_quick_model_is_given_whole_pieces_once_that_is_known() -> None:
    scorer = Scorer()

    scored(scorer, 4 + 3 * PIECE)

    assert scorer.sizes == [4, PIECE, PIECE, PIECE]


def test_a_call_that_would_be_late_is_not_rested_in() -> None:
    scorer = Scorer(takes_s=0.02)
    begun = time.monotonic()

    scored(scorer, 8, patience_s=0.2)

    # Five pieces and four rests would take 0.34 s.
    assert time.monotonic() - begun < 0.2


def test_another_model_starts_from_the_first_row() -> None:
    def exchange(piece: int) -> None:
        if piece == 2:
            scorer.digest = "two"

    scorer = Scorer(before=exchange)

    answer = scored(scorer, 3 * PIECE)

    assert (answer["digest"], len(answer["scores"])) == ("two", 3 * PIECE)
    assert answer["scores"] == [float(i) for i in range(3 * PIECE)]
    assert sum(scorer.sizes) > 3 * PIECE


def test_what_else_is_asked_gets_its_turn_between_pieces() -> None:
    scorer, turns = Scorer(), []

    async def run() -> None:
        rows = [{"x": 0.0}] * (4 * PIECE)
        task = asyncio.ensure_future(Pieces(scorer.score).score(rows, time.monotonic() + 60))
        while not task.done():
            await asyncio.sleep(0)
            turns.append(len(scorer.sizes))

    asyncio.run(run())

    assert {1, 2, 3} <= set(turns)


@pytest.mark.parametrize(("cpu", "rests"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0), (0.4, 1.5), (0.1, 3.0), (0.001, 3.0)])
def test_the_more_of_a_processor_it_may_take_the_less_it_rests(
    cpu: float, rests: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    asyncio.run(Pieces(Scorer(before=clock.works(0.01)).score, cpu).score([{"x": 0.0}] * 10, 60.0))

    # Seven pieces, the first of four rows.
    assert clock.rests == pytest.approx([0.01 * rests] * 6)


def test_a_row_the_model_cannot_take_does_not_cost_the_others_their_score() -> None:
    def picky(rows: Sequence[Row]) -> dict[str, Any]:
        if rows[0]["x"] in unwanted:
            raise KeyError("y")
        return Scorer(takes_s=0.002).score(rows)

    rows = [{"x": float(i)} for i in range(8)]
    unwanted = {5.0, 7.0}
    assert asyncio.run(Pieces(picky).score(rows, time.monotonic() + 60))["scores"] == [0, 1, 2, 3, 4, None, 6, None]

    pieces = Pieces(picky)
    asyncio.run(pieces.score(rows[:4], time.monotonic() + 60))
    unwanted = {float(i) for i in range(8)}
    with pytest.raises(KeyError):
        asyncio.run(pieces.score(rows, time.monotonic() + 60))


@pytest.mark.parametrize("given", [0, 1, 3, 5])
def test_a_model_that_gives_another_number_of_scores_is_refused(given: int) -> None:
    def miscounting(rows: Sequence[Row]) -> dict[str, Any]:
        return {"version": "1", "digest": "one", "scores": [0.5] * given, "cpu_s": 0.0}

    with pytest.raises(ValueError, match=f"gave {given} scores for 4 rows"):
        asyncio.run(Pieces(miscounting).score([{"x": 0.0}] * 8, time.monotonic() + 60))


def test_what_nobody_waits_for_any_more_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scorer = Scorer(before=clock.works(0.02))

    with pytest.raises(TooLate, match="8 of 100 rows were scored in time") as late:
        asyncio.run(Pieces(scorer.score).score([{"x": 0.0}] * 100, 0.11))

    # Four rows at first, and then one by one. It says so while somebody hears it.
    assert scorer.sizes == [4, 1, 1, 1, 1]
    assert late.value.cpu_s == 0.5 * 5
    assert clock.now < 0.11
