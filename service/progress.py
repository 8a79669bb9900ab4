"""Progress of long work, for whoever watches a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

# Takes one line of what a job is at.
Say = Callable[[str], None]


class Progress:
    """Says what a job is at, each line with the seconds since it began."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = time.perf_counter()

    def __call__(self, text: str) -> None:
        """Say it."""
        self._out.write(f"[{self.seconds:5.1f} s] {text}\n")
        self._out.flush()

    @property
    def seconds(self) -> float:
        """Time since the job began, in seconds."""
        return time.perf_counter() - self._begun
