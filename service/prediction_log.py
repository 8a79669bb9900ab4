"""Append-only logs that survive a killed process and never stop an answer.

A line is handed to the operating system before the caller gets its answer, so ``kill -9`` of every process
loses no acknowledged prediction. (A power failure may lose the last seconds: lines are not synced one by one.)

Every line carries ``seq``, which grows by one with every record that was to be kept, kept or not: a gap is a loss, and
a reader can say exactly how many there were (``monitoring/ledger.py``).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from service.clock import WallClock

logger = logging.getLogger("understudy")

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY
# A dead disk is not asked by every request.
_RETRY_S = 0.1


class Log(Protocol):
    """Anything that keeps records."""

    def append(self, record: Mapping[str, Any]) -> bool:
        """Keep one record; False when it could not be kept."""
        ...

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Keep several in one go, all that can be told or none; returns how many were kept."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class SegmentLog:
    """One process's segments of one log: JSON lines in files that only this process writes.

    A segment is locked (shared) while it is open, so that whoever deletes old ones can tell it from a finished one.

    Args:
        folder: where the segments go; made when missing.
        segment_bytes: size at which a segment is closed and the next one begun.
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = folder
        self._limit = segment_bytes
        # Containers share process ids: two replicas on one folder may start in the same second.
        self._stem = f"{WallClock().now():%Y%m%dT%H%M%S}-{os.getpid()}-{os.urandom(3).hex()}"
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._seq = 0
        self._kept_seq = 0
        self._retry_at = 0.0

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write one line; False when it could not be written."""
        return bool(self.extend((record,)))

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Write their lines in one go; on any failure leave no half line behind and return 0.

        A record that JSON cannot tell is left out, and its number is missing.
        """
        lines = []
        for record in records:
            self._seq += 1
            try:
                lines.append(orjson.dumps({**record, "seq": self._seq}, default=str, option=_OPTIONS))
            except orjson.JSONEncodeError:
                continue
        return len(lines) if lines and self._write(b"".join(lines)) else 0

    def close(self) -> None:
        """Close the current segment; a later append begins a new one.

        Losses after the last line would be unseen: they are told in a closing line, if there is room for it.
        """
        if self._kept_seq < self._seq:
            self._write(orjson.dumps({"closed": True, "seq": self._seq}, option=_OPTIONS))
        self._release()

    def _write(self, lines: bytes, *, again: bool = False) -> bool:
        if self._file is None and time.monotonic() < self._retry_at:
            return False
        try:
            file = self._segment(len(lines))
            written = os.write(file, lines)
        except OSError:
            # A later append opens a new segment, so logging heals by itself when the disk does.
            self._release()
            self._retry_at = time.monotonic() + _RETRY_S
            return False
        if written != len(lines):
            self._cut(file)
            return False
        if not again and os.fstat(file).st_nlink == 0:
            # Somebody deleted the segment: what was in it is theirs to account for, these lines are ours.
            self._release()
            return self._write(lines, again=True)
        self._size += written
        self._kept_seq = self._seq
        return True

    def _segment(self, coming: int) -> int:
        if self._file is not None and self._size and self._size + coming > self._limit:
            self._release()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._stem}-{self._number:05d}.jsonl"
            self._number += 1
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
            self._lock(self._file)
            self._size = 0
        return self._file

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems know no locks. What cannot be locked is not deleted either, see retention.py.
            if self._number == 1:
                logger.warning("segments in %s cannot be locked (%s): they are kept for ever", self._folder, error)

    def _cut(self, file: int) -> None:
        try:
            os.ftruncate(file, self._size)
        except OSError:
            self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
