"""The only source of "now" for business time.

In production the clock is the wall clock. In a replay it runs through the past: the replay writes the
moment it has reached into a small file, and every process that was started on that file reads it there.
Durations and deadlines do not belong here: they use the monotonic clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from service.errors import NotReady


class Clock(Protocol):
    """Anything that can say what time it is for the business."""

    def now(self) -> datetime:
        """Return the current business time, timezone-aware, in UTC."""
        ...


class WallClock:
    """The real time."""

    def now(self) -> datetime:
        """Return the wall clock's time in UTC."""
        return datetime.now(UTC)


class ManualClock:
    """A clock that stands still until it is moved; for tests and for the replay itself."""

    def __init__(self, at: datetime) -> None:
        self._at = as_utc(at)

    def now(self) -> datetime:
        """Return the moment last set."""
        return self._at

    def set(self, at: datetime) -> None:
        """Move to ``at``, forwards or backwards."""
        self._at = as_utc(at)


class OffsetClock:
    """Runs at real pace from a chosen moment; for trying the service out on data from the past."""

    def __init__(self, start: datetime) -> None:
        self._start = as_utc(start)
        self._zero = time.monotonic()

    def now(self) -> datetime:
        """Return the start moment plus the time since this object was made."""
        return self._start + timedelta(seconds=time.monotonic() - self._zero)


class FileClock:
    """Reads the moment another process last wrote with :func:`write_clock`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = -1
        self._at = datetime.min.replace(tzinfo=UTC)
        self.now()

    def now(self) -> datetime:
        """Return the moment in the file; re-read only when it has changed. Stands still while it cannot be read.

        Raises:
            NotReady: when it could never be read: missing, or no ISO instant.
        """
        try:
            # The inode, not the modification time: each write is a new file, and two can share a timestamp.
            status = self._path.stat()
            stamp = hash((status.st_ino, status.st_mtime_ns))
            if stamp != self._stamp:
                self._at = parse_instant(self._path.read_text().strip())
                self._stamp = stamp
        except (OSError, ValueError) as error:
            if self._stamp != -1:
                return self._at
            msg = f"clock file {self._path} cannot be read ({error}); start it with `make replay` or use clock=wall"
            raise NotReady(msg) from None
        return self._at


def write_clock(path: Path, at: datetime) -> None:
    """Move the file clock at ``path`` to ``at`` in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".next")
    temporary.write_text(as_utc(at).isoformat())
    temporary.replace(path)


def clock_from(setting: str) -> Clock:
    """Build the clock a setting names: ``wall``, an ISO instant to start from, or the path of a clock file.

    Raises:
        NotReady: when the setting is none of the three.
    """
    if setting == "wall":
        return WallClock()
    try:
        return OffsetClock(parse_instant(setting))
    except ValueError:
        return FileClock(Path(setting))


def parse_instant(text: str) -> datetime:
    """Parse an ISO 8601 instant; a missing offset means UTC.

    Raises:
        ValueError: when the text is not ISO 8601.
    """
    return as_utc(datetime.fromisoformat(text))


def as_utc(moment: datetime) -> datetime:
    """Return the same instant in UTC; a naive value is read as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
