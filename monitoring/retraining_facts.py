"""Gathers what the retraining decision rests on: the monitor's files, seated packages, labels, earlier decisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from monitoring.drift_page import episodes
from monitoring.drift_store import of_length, read_windows
from monitoring.gap import THRESHOLD
from monitoring.performance_store import read_stretches
from monitoring.retraining_rules import LASTING, RULES, Alarm, Facts
from service.clock import parse_instant
from service.contract import duration
from service.errors import NotReady, PackageError
from service.package import read_package
from service.roles import Roles, Seat, read_roles
from service.settings import Settings

_LABELLED = """
SELECT count(*), count(*) FILTER (request_id IN (SELECT request_id FROM
  read_json(getvariable('labels'), format='newline_delimited', ignore_errors=true,
    columns={'request_id': 'VARCHAR', 'label': 'DOUBLE'}) WHERE request_id IS NOT NULL AND label IS NOT NULL))
FROM read_json(getvariable('segments'), format='newline_delimited', ignore_errors=true,
  columns={'request_id': 'VARCHAR', 'at': 'TIMESTAMPTZ'})
WHERE request_id IS NOT NULL AND "at" >= $since AND "at" <= $until
"""


def gather(own: Settings, now: datetime) -> Facts:
    """Read everything.

    Raises:
        NotReady: when roles.json, the primary's package, the logs or the monitor's files cannot be read.
    """
    roles = read_roles(own.models_dir)
    primary = roles.seats.get("primary")
    if primary is None:
        return Facts(now)
    trained = _trained(own, primary)
    windows = of_length(read_windows(own.state_dir / "monitoring").windows, duration(own.monitor_window, "window"))
    # A finding about another model is no reason to replace this one.
    mine = tuple(w for w in windows if w.digest == primary.digest and w.status == "judged" and w.end <= now)
    standing = [e for e in episodes(mine) if e.standing]
    alarms = tuple(Alarm(e.name, e.first, e.windows, e.text) for e in standing)
    lasting = [a.first for a in alarms if a.windows >= LASTING and a.name.partition(":")[0] in RULES]
    since = min(lasting, default=None)
    until = now - timedelta(hours=own.label_maturity_h)
    return Facts(
        now, primary.digest, trained, _newest(own, roles), mine[-1].end if mine else None, alarms,
        _concept(own, primary, now), _labelled(own.log_dir, since, until) if since else None,
        _decided(own.state_dir / "retraining" / "decisions.jsonl"),
    )  # fmt: skip


def read_decisions(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Every record of decisions and trainings, in order, and the number of lines that cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    found: list[Mapping[str, Any]] = []
    for line in lines:
        try:
            plain = dict(json.loads(line))
            parse_instant(plain["at"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(plain)
    return found, len(lines) - len(found)


def _trained(own: Settings, seat: Seat) -> datetime | None:
    try:
        record = json.loads(read_package(own.models_dir / seat.package, seat.digest)["record.json"])
    except (PackageError, KeyError, ValueError) as error:
        msg = f"the package of version {seat.version} cannot be read ({error}); run `make rollback` or `make train`"
        raise NotReady(msg) from None
    try:
        return parse_instant(str(record["as_of"]))
    except (KeyError, TypeError, ValueError):
        return None


def _newest(own: Settings, roles: Roles) -> datetime | None:
    return max((at for seat in roles.seats.values() if (at := _trained(own, seat)) is not None), default=None)


def _concept(own: Settings, primary: Seat, now: datetime) -> tuple[float, float] | None:
    stretches, _ = read_stretches(own.state_dir / "monitoring")
    known = [
        s for s in stretches
        if s.evidence is not None and s.digest == primary.digest and s.role == "primary" and s.end <= now
    ]  # fmt: skip
    last = max(known, key=lambda s: s.end, default=None)
    return None if last is None or last.evidence is None else (last.evidence, THRESHOLD)


def _labelled(log_dir: Path, since: datetime, until: datetime) -> float | None:
    segments, labels = (
        sorted(str(path) for path in (log_dir / name).glob("*.jsonl") if path.stat().st_size)
        for name in ("predictions", "labels")
    )
    if not segments or until <= since:
        return None
    if not labels:
        return 0.0
    try:
        with duckdb.connect() as db:
            db.execute("SET VARIABLE segments = ?", [segments])
            db.execute("SET VARIABLE labels = ?", [labels])
            rows, known = db.execute(_LABELLED, {"since": since, "until": until}).fetchall()[0]
    except duckdb.Error as error:
        msg = f"the logs below {log_dir} cannot be read ({str(error).splitlines()[0]}); run `make ledger`"
        raise NotReady(msg) from None
    return known / rows if rows else None


def _decided(path: Path) -> datetime | None:
    found, _ = read_decisions(path)
    # A decision that nobody acted on, and a training that was cut short, keep asking.
    done = [
        parse_instant(plain["at"]) for plain in found if plain.get("decision") in ("trained", "unchanged", "refused")
    ]
    return max(done, default=None)
