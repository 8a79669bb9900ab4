"""Gathers what the status page says from files alone; whatever cannot be read is said, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from monitoring.drift_store import FILE, read_windows
from monitoring.ledger import Ledger, ledger
from monitoring.performance_store import read_stretches
from monitoring.retraining_facts import read_decisions
from monitoring.status_tiles import Measured, Played, Source, Traffic
from service.clock import as_utc
from service.errors import PackageError, UnderstudyError
from service.package import read_package
from service.roles import Move, read_history, read_roles
from service.settings import Settings
from service.split_file import read_split

_COLUMNS = (
    "{'request_id': 'VARCHAR', 'at': 'TIMESTAMPTZ', 'role': 'VARCHAR', 'event_times': 'JSON', "
    "'violations': 'STRUCT(feature VARCHAR, kind VARCHAR)[]'}"
)
# `at` is a word of SQL, so it is quoted.
_DAY = """
WITH lines AS (
  SELECT * FROM read_json(getvariable('segments'), format='newline_delimited', ignore_errors=true, columns={columns})
  WHERE request_id IS NOT NULL AND "at" IS NOT NULL
), newest AS (SELECT max("at") AS last FROM lines),
day AS (SELECT lines.*, last FROM lines, newest WHERE "at" > last - INTERVAL 1 DAY)
SELECT max(last), count(*),
  count(*) FILTER (len([v FOR v IN violations IF v.kind = 'stale']) > 0),
  count(*) FILTER (len([v FOR v IN violations IF v.kind IN ('missing', 'null')]) > 0),
  count(*) FILTER (len([t FOR t IN json_extract_string(event_times, '$.*') IF TRY_CAST(t AS TIMESTAMPTZ) > "at"]) > 0),
  count(*) FILTER (role = 'fallback'), count(*) FILTER (role = 'none')
FROM day
"""


@dataclass(frozen=True)
class Facts:
    """What the page shows beside the tiles.

    Attributes:
        campaigns, watches, decisions: as their files hold them, the newest first.
        split: as its file holds it; None while none runs.
        pages: reports beside the status page.
        problems: inputs that could not be read.
    """

    measured: Measured
    moves: tuple[Move, ...]
    campaigns: tuple[Source, ...]
    watches: tuple[Mapping[str, Any], ...]
    decisions: tuple[Mapping[str, Any], ...]
    split: str
    accounts: Ledger | None
    pages: tuple[str, ...]
    problems: tuple[str, ...]


def gather(own: Settings, reports: Path) -> Facts:
    """Read everything below state and models folder; reports from ``reports``."""
    problems: list[str] = []
    monitoring = own.state_dir / "monitoring"
    stored = read_windows(monitoring)
    why = f"{stored.damaged_lines:,} damaged lines in {FILE}" if stored.damaged_lines else ""
    stretches, torn = read_stretches(monitoring)
    problems += [why] if why else []
    problems += [f"{torn:,} damaged lines in performance.jsonl"] if torn else []
    played, moves, roles_why = _roles(own)
    problems += [roles_why] if roles_why else []
    traffic, traffic_why = _traffic(own.log_dir / "predictions")
    measured = Measured(
        read_source(reports / "skew.json"), stored.windows, why, stretches, played, roles_why, traffic, traffic_why
    )
    campaigns = tuple(read_source(path) for path in sorted(reports.glob("compare*.json")))
    problems += [f"{one.name}: {one.why}" for one in campaigns if one.data is None]
    watches = [read_source(path) for path in sorted((own.state_dir / "watch").glob("*.json"))]
    problems += [f"watch/{one.name}: {one.why}" for one in watches if one.data is None]
    decisions, lost = read_decisions(own.state_dir / "retraining" / "decisions.jsonl")
    problems += [f"{lost:,} damaged lines in decisions.jsonl"] if lost else []
    return Facts(
        measured, tuple(reversed(moves[-8:])), campaigns, tuple(one.data for one in watches if one.data),
        tuple(reversed(decisions[-5:])), _split(own, problems), _accounts(own, problems),
        tuple(sorted(p.name for p in reports.glob("*.html") if p.name != "status.html")), tuple(problems),
    )  # fmt: skip


def read_source(path: Path) -> Source:
    """Read one JSON object."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return Source(path.name, None, "missing")
    except (OSError, ValueError) as error:
        return Source(path.name, None, f"damaged ({error})")
    return Source(path.name, data) if isinstance(data, dict) else Source(path.name, None, "damaged (no JSON object)")


def _roles(own: Settings) -> tuple[tuple[Played, ...], list[Move], str]:
    try:
        roles, moves = read_roles(own.models_dir), read_history(own.models_dir)
    except UnderstudyError as error:
        return (), [], str(error)
    played = []
    for role, seat in roles.seats.items():
        record: Mapping[str, Any] | None = None
        why = ""
        try:
            record = dict(json.loads(read_package(own.models_dir / seat.package, seat.digest)["record.json"]))
        except (PackageError, KeyError, ValueError) as error:
            why = str(error)
        played.append(Played(role, seat.version, seat.digest, record, why))
    return tuple(played), moves, ""


def _traffic(folder: Path) -> tuple[Traffic | None, str]:
    segments = sorted(str(path) for path in folder.glob("*.jsonl") if path.stat().st_size)
    if not segments:
        return None, "no predictions logged"
    try:
        with duckdb.connect() as db:
            db.execute("SET VARIABLE segments = ?", [segments])
            db.execute("SET TimeZone = 'UTC'")
            found = db.execute(_DAY.replace("{columns}", _COLUMNS)).fetchone()
    except (duckdb.Error, OSError) as error:
        return None, f"the prediction log cannot be read ({str(error).splitlines()[0]})"
    if found is None or not found[1]:
        return None, "the prediction log holds no whole record"
    last, *counts = found
    return Traffic(as_utc(last), *counts), ""


def _split(own: Settings, problems: list[str]) -> str:
    try:
        split = read_split(own.models_dir).split
    except UnderstudyError as error:
        problems.append(str(error))
        return "no data"
    if split is None:
        return ""
    return (
        f"{split.share:.0%} treated by {split.slot}, judged by {split.metric}, opened {split.opened:%Y-%m-%d %H:%M} UTC"
    )


def _accounts(own: Settings, problems: list[str]) -> Ledger | None:
    if not any((own.log_dir / "predictions").glob("*.jsonl")):
        return None
    try:
        return ledger(own.log_dir)
    except (duckdb.Error, OSError) as error:
        problems.append(f"the ledger cannot be made ({str(error).splitlines()[0]})")
        return None
