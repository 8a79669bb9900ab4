"""A stretch of a log segment as rows of a table: what is a record, what is not, and where each line began. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

# A damaged line is kept aside up to here.
MOST_KEPT = 1_000_000
_INT64 = 2**63
_NUL = b"\\u0000"

Row = tuple[Any, ...]


class _NoRecord(ValueError):
    """The line is not what its log holds."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _NoRecord
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NoRecord
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _NoRecord
    return value


def _instant(value: Any) -> str:
    # Handed on as it is: the database reads the same text, to the microsecond.
    try:
        aware = datetime.fromisoformat(_text(value)).tzinfo is not None
    except ValueError:
        raise _NoRecord from None
    if not aware:
        raise _NoRecord
    return str(value)


Read = Callable[[Any], Any]
# By log and column: how it is read, and whether a record cannot be without it.
COLUMNS: dict[str, dict[str, tuple[Read, bool]]] = {
    "predictions": {
        "request_id": (_text, True),
        "at": (_instant, True),
        "role": (_text, True),
        "model_version": (_text, False),
        "model_digest": (_text, False),
        "prediction": (_number, True),
        "confidence": (_text, False),
        "fallback_reason": (_text, False),
        "shadow_sampled": (_truth, False),
        "arm": (_text, False),
        "service_version": (_text, False),
    },
    "shadow": {
        "request_id": (_text, True),
        "at": (_instant, False),
        "shadow": (_text, False),
        "outcome": (_text, True),
        "reason": (_text, False),
        "model_version": (_text, False),
        "model_digest": (_text, False),
        "prediction": (_number, False),
        "latency_ms": (_number, False),
    },
    "labels": {
        "request_id": (_text, True),
        "label": (_number, True),
        "known_at": (_instant, True),
        "at": (_instant, False),
    },
}


@dataclass
class Part:
    """What a stretch of whole lines holds.

    Attributes:
        rows: place of the line in the segment, its number, the log's columns, the record as JSON text.
        damaged: place, length and bytes (up to 1 MB) of lines that are no record.
        numbered: rows that have a number.
        altered: rows in which U+FFFD stands for a NUL.
        last_seq: highest number, a closing line's too.
        end: where the stretch ends in the segment.
    """

    rows: list[Row] = field(default_factory=list)
    damaged: list[Row] = field(default_factory=list)
    numbered: int = 0
    altered: int = 0
    last_seq: int = 0
    end: int = 0

    def reject(self, row: Row) -> None:
        """Put a row aside that the database would not take."""
        line = str(row[-1]).encode()
        self.rows.remove(row)
        self.damaged.append((row[0], len(line), line[:MOST_KEPT]))
        self.numbered -= row[1] is not None


def parsed(log: str, lines: bytes, start: int) -> Part:
    """Read whole lines of a segment.

    Args:
        lines: ends with a line's end, or is empty.
        start: where they begin in the segment, in bytes.
    """
    part, columns, place = Part(), COLUMNS[log], start
    for line in lines.split(b"\n")[:-1]:
        try:
            _take(part, columns, line, place)
        except _NoRecord:
            part.damaged.append((place, len(line), line[:MOST_KEPT]))
        place += len(line) + 1
    part.end = place
    return part


def _take(part: Part, columns: Mapping[str, tuple[Read, bool]], line: bytes, place: int) -> None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise _NoRecord from None
    if not isinstance(record, dict):
        raise _NoRecord
    altered = _NUL in line
    if altered:
        record = _without_nul(record)
        line = orjson.dumps(record)
    seq = record.get("seq")
    if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int) or not 0 < seq < _INT64):
        raise _NoRecord
    if record.get("closed") is not True:
        values = [_read(record.get(name), *how) for name, how in columns.items()]
        part.rows.append((place, seq, *values, line.decode()))
        part.numbered += seq is not None
        part.altered += altered
    part.last_seq = max(part.last_seq, seq or 0)


def _read(value: Any, read: Read, needed: bool) -> Any:
    if value is None:
        if needed:
            raise _NoRecord
        return None
    return read(value)


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(each) for each in value]
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(each) for name, each in value.items()}
    return value
