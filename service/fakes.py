"""Stand-ins shipped with the service, so that tests inject instead of patch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.features import Row, Stored
from service.runners import Scored


class MemoryLog:
    """Keeps records in a list; refuses them while ``broken``."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.broken = False

    def append(self, record: Mapping[str, Any]) -> bool:
        """Keep a copy of the record unless broken."""
        if self.broken:
            return False
        self.records.append(dict(record))
        return True

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Keep copies of the records unless broken."""
        return sum(self.append(record) for record in records)

    def close(self) -> None:
        """Nothing to release."""


class FakeLookup:
    """Answers every row from one function, which may raise."""

    def __init__(self, answer: Callable[[Row], Stored], delay_s: float = 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s

    def at_hand(self, row: Row) -> Stored | None:
        """Know nothing without asking."""

    async def fetch(self, row: Row) -> Stored:
        """Return the function's answer after the delay."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self.answer(row)


class FakeRunner:
    """Scores every row with one function, which may raise; remembers the rows it was given."""

    def __init__(
        self, score: Callable[[Mapping[str, Any]], float | None], *, version: str = "1", delay_s: float = 0.0
    ) -> None:
        self.score_one = score
        self.version = version
        self.delay_s = delay_s
        self.rows: list[Mapping[str, Any]] = []

    async def score(self, rows: Sequence[Mapping[str, Any]], end: float = math.inf, *, gently: bool = False) -> Scored:
        """Return one score per row after the delay."""
        self.rows.extend(rows)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return Scored(self.version, f"digest-{self.version}", tuple(self.score_one(row) for row in rows))
