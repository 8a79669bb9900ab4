"""Deletes finished log segments that are too old or too many. Never one that a process still writes."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock, WallClock

logger = logging.getLogger("understudy")

_SEGMENT = re.compile(r"\d{8}T\d{6}-\d+-[0-9a-f]{6}-\d{5,}\.jsonl")


@dataclass(frozen=True)
class Keep:
    """What is kept of each log; 0 means for ever.

    Attributes:
        days: since a segment was last written.
        most_bytes: of all segments of a log together.
    """

    days: float = 0.0
    most_bytes: int = 0


@dataclass(frozen=True)
class _Segment:
    path: Path
    written: float
    size: int


def sweep(folder: Path, keep: Keep, clock: Clock) -> list[Path]:
    """Delete what is not to be kept, oldest first, and return it. Files that vanish meanwhile do not matter.

    Args:
        folder: of one log.
        clock: the wall clock: files are dated by it.
    """
    segments = sorted(_segments(folder), key=lambda segment: segment.written)
    now = clock.now().timestamp()
    total = sum(segment.size for segment in segments)
    deleted = []
    for segment in segments:
        old = keep.days > 0 and now - segment.written > keep.days * 86400
        much = 0 < keep.most_bytes < total
        if (old or much) and _delete_finished(segment.path):
            deleted.append(segment.path)
            total -= segment.size
    return deleted


class Retention:
    """Sweeps the folders of a running service now and then."""

    def __init__(self, folders: Sequence[Path], keep: Keep, every_s: float = 60.0) -> None:
        self._folders = folders
        self._keep = keep
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, when there is anything not to be kept for ever."""
        if self._keep != Keep():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while True:
            for folder in self._folders:
                gone = await asyncio.to_thread(sweep, folder, self._keep, WallClock())
                if gone:
                    logger.info("deleted %d segments of %s: %s", len(gone), folder, ", ".join(p.name for p in gone))
            await asyncio.sleep(self._every_s)


def _segments(folder: Path) -> list[_Segment]:
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                if _SEGMENT.fullmatch(path.name):
                    found.append(_Segment(path, status.st_mtime, status.st_size))
    return found


def _delete_finished(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            # Its writer holds a shared lock for as long as it lives.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True
