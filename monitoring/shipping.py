"""Copies log segments into PostgreSQL: every line exactly once, however often it is stopped and started.

How far a segment was copied is kept in the database and moves in the transaction that brings the rows; so a copier
that dies leaves nothing to repair, and two of them take turns segment by segment. Segments are only read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import psycopg
from psycopg import conninfo, sql

from monitoring.shipping_rows import COLUMNS, Part, Row, parsed
from monitoring.shipping_schema import prepare
from service.errors import DataError, NotReady
from service.progress import Say

# Read and committed at once; about 6,000 predictions.
CHUNK = 8_000_000
_SAY_S = 2.0
# A server that went away without a word is noticed after half a minute, not after the system's two hours.
_DEFAULTS = {
    "connect_timeout": "10",
    "application_name": "understudy-ship",
    "keepalives_idle": "30",
    "tcp_user_timeout": "30000",
}

# Content no table or index takes: a value out of range, a key too long for an index, JSON nested too deeply.
_REFUSED = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


@dataclass(frozen=True)
class Shipped:
    """What one pass did.

    Attributes:
        segments: files looked at.
        rows: records copied.
        damaged: lines put aside.
        already: records of these segments that were there before.
        behind_bytes: of these segments that are not copied: torn tails, and what was written meanwhile.
        missing: by log, records its writers numbered that are not there: lost by the writer, or deleted before a pass.
    """

    segments: int
    rows: int
    damaged: int
    already: int
    behind_bytes: int
    missing: dict[str, int]

    def plain(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass
class _Tally:
    rows: int = 0
    damaged: int = 0


def connect(dsn: str) -> psycopg.Connection:
    """Connect, in autocommit: transactions are opened by name.

    Raises:
        NotReady: when the DSN cannot be read; the message does not show it.
        psycopg.OperationalError: when the server cannot be reached.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        msg = "the DSN cannot be read; write postgresql://user@host:5432/database (special characters as %40, %2F, ...)"
        raise NotReady(msg) from None
    more = {name: value for name, value in _DEFAULTS.items() if name not in given}
    return psycopg.connect(conninfo.make_conninfo(dsn, **more), autocommit=True)


def unsecret(text: str, dsn: str) -> str:
    """Return a message without any part of the DSN's password: an unescaped ``@`` makes the rest of it a host name."""
    spoken = re.match(r"\w+://([^/?#]*:)(?P<secret>.*)@", dsn, re.DOTALL)
    parts = re.split(r"[@/:?#\s]", spoken["secret"]) if spoken else []
    try:
        parts.append(str(conninfo.conninfo_to_dict(dsn).get("password") or ""))
    except psycopg.ProgrammingError:
        parts += re.findall(r"password\s*=\s*'?([^\s']+)", dsn)
    for part in sorted((p for p in parts if len(p) > 2), key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def ship(db: psycopg.Connection, log_dir: Path, say: Say) -> Shipped:
    """Copy what the three logs hold and the database does not.

    Raises:
        NotReady: when there are no logs, or the tables are of a newer version.
        DataError: when a segment is shorter than what was copied of it; the others are copied first.
        psycopg.Error: when the database cannot be written; what was committed stays.
    """
    if not any((log_dir / log).is_dir() for log in COLUMNS):
        msg = f"there are no logs in {log_dir}; run `make serve` first, or name their folder with --logs"
        raise NotReady(msg)
    prepare(db)
    known = {
        (log, name): (int(shipped), int(rows))
        for log, name, shipped, rows in db.execute("SELECT log, name, shipped_bytes, rows FROM understudy.segments")
    }
    found = [(log, path) for log in COLUMNS for path in sorted((log_dir / log).glob("*.jsonl"))]
    tally, shrunk, begun, said = _Tally(), [], time.monotonic(), time.monotonic()
    for number, (log, path) in enumerate(found, 1):
        for part in _rest(db, log, path, known.get((log, path.name), (0, 0))[0]):
            if part is None:
                shrunk.append(path.name)
                break
            tally.rows += len(part.rows)
            tally.damaged += len(part.damaged)
            if time.monotonic() - said > _SAY_S:
                said = time.monotonic()
                speed = tally.rows / (said - begun)
                say(f"{number} of {len(found)} segments, {tally.rows:,} rows, {speed:,.0f} a second")
    if shrunk:
        msg = f"{', '.join(shrunk)}: shorter than what was copied; is another file under an old name? Nothing of it was"
        raise DataError(f"{msg} changed in the database")
    already = sum(known.get((log, path.name), (0, 0))[1] for log, path in found)
    return Shipped(len(found), tally.rows, tally.damaged, already, _behind(db, found), _missing(db))


def _rest(db: psycopg.Connection, log: str, path: Path, shipped: int) -> Iterator[Part | None]:
    """Copy a segment's rest, chunk by chunk; None when it is shorter than it was."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == shipped:
                return
            while True:
                with db.transaction():
                    part = _chunk(db, log, path.name, file)
                yield part
                if part is None or not part.end:
                    return
    except FileNotFoundError:
        # Retention was faster: the gap in the numbers tells, if anything was not copied yet.
        return


def _chunk(db: psycopg.Connection, log: str, name: str, file: BinaryIO) -> Part | None:
    writer = name.removesuffix(".jsonl").rpartition("-")[0]
    db.execute(
        "INSERT INTO understudy.segments (log, name, writer) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [log, name, writer],
    )
    # Whoever else copies this segment waits here, and then reads how far it is.
    row = db.execute(
        "SELECT id, shipped_bytes FROM understudy.segments WHERE log = %s AND name = %s FOR UPDATE", [log, name]
    ).fetchone()
    assert row is not None
    segment, start = int(row[0]), int(row[1])
    if file.seek(0, 2) < start:
        return None
    part = parsed(log, _whole_lines(file, start), start)
    if part.end == start:
        part.end = 0
        return part
    _copy(db, log, segment, part, part.rows[:])
    _insert(db, "damaged", ("start", "bytes", "line"), segment, part.damaged)
    db.execute(
        "UPDATE understudy.segments SET shipped_bytes = %s, rows = rows + %s, numbered = numbered + %s, "
        "damaged = damaged + %s, altered = altered + %s, last_seq = greatest(last_seq, %s), shipped_at = now() "
        "WHERE id = %s",
        [part.end, len(part.rows), part.numbered, len(part.damaged), part.altered, part.last_seq, segment],
    )
    return part


def _whole_lines(file: BinaryIO, start: int) -> bytes:
    size = CHUNK
    while True:
        file.seek(start)
        read = file.read(size)
        if (end := read.rfind(b"\n")) >= 0:
            return read[: end + 1]
        if len(read) < size:
            return b""
        size *= 2


def _copy(db: psycopg.Connection, log: str, segment: int, part: Part, rows: Sequence[Row]) -> None:
    """Copy rows; what the database refuses for its content is found by halving, and put aside."""
    try:
        with db.transaction():
            _insert(db, log, ("start", "seq", *COLUMNS[log], "record"), segment, rows)
    except _REFUSED:
        if len(rows) == 1:
            part.reject(rows[0])
            return
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            _copy(db, log, segment, part, half)


def _insert(db: psycopg.Connection, table: str, columns: Sequence[str], segment: int, rows: Sequence[Row]) -> None:
    if not rows:
        return
    names = sql.SQL(", ").join(sql.Identifier(name) for name in ("segment_id", *columns))
    statement = sql.SQL("COPY understudy.{} ({}) FROM STDIN").format(sql.Identifier(table), names)
    with db.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row((segment, *row))


def _behind(db: psycopg.Connection, found: Sequence[tuple[str, Path]]) -> int:
    shipped = {
        (log, name): int(to) for log, name, to in db.execute("SELECT log, name, shipped_bytes FROM understudy.segments")
    }
    behind = 0
    for log, path in found:
        if path.exists():
            behind += max(0, path.stat().st_size - shipped.get((log, path.name), 0))
    return behind


def _missing(db: psycopg.Connection) -> dict[str, int]:
    sums = db.execute("SELECT log, sum(missing) FROM understudy.writers GROUP BY log").fetchall()
    return dict.fromkeys(COLUMNS, 0) | {str(log): int(count) for log, count in sums}
