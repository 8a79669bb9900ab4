"""Whether everything is accounted for: what was answered, logged and lost; what was sampled, rehearsed and dropped.

Counts come from the logs alone. Each line has a number that its writer raises with every record, kept or not, so that
losses show as gaps; losses after a writer's last line show in its closing line, or, when it was killed while its disk
was full, nowhere but in the metrics.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from service.settings import settings


@dataclass(frozen=True)
class Kept:
    """One log.

    Attributes:
        writers: processes that wrote it.
        served: records that were to be kept, by the numbers of the lines.
        logged: whole records.
        dropped: ``served - logged``; damaged lines are among them.
        damaged: lines that are no whole record.
        unnumbered: whole records of a version that did not number them; not part of the other counts.
        repeated: whole records whose number their writer had given already.
    """

    writers: int
    served: int
    logged: int
    dropped: int
    damaged: int
    unnumbered: int
    repeated: int


@dataclass(frozen=True)
class Ledger:
    """All of it.

    Attributes:
        sampled: predictions the shadow was to rehearse.
        scored: of them scored.
        shadow_dropped: of them dropped, by reason.
        unrecorded: of them without a shadow record: their process was killed, or the record was lost.
        strangers: shadow records of no sampled prediction.
        exact: nothing is repeated, nobody is a stranger, and every loss is a numbered one.
    """

    predictions: Kept
    shadow: Kept
    labels: Kept
    sampled: int
    scored: int
    shadow_dropped: dict[str, int]
    unrecorded: int
    strangers: int
    exact: bool


def ledger(log_dir: Path) -> Ledger:
    """Account for the logs below a folder."""
    with duckdb.connect() as db:
        logs = {name: _kept(db, log_dir / name, name) for name in ("predictions", "shadow", "labels")}
        reasons = Counter(
            {
                (outcome, reason): int(count)
                for outcome, reason, count in db.execute(
                    "SELECT s.outcome, coalesce(s.reason, ''), count(DISTINCT s.request_id) FROM shadow s "
                    "JOIN (SELECT DISTINCT request_id FROM predictions WHERE shadow_sampled) USING (request_id) "
                    "GROUP BY ALL"
                ).fetchall()
            }
        )
        sampled = _one(db, "SELECT count(DISTINCT request_id) FROM predictions WHERE shadow_sampled")
        unrecorded = _one(
            db,
            "SELECT count(DISTINCT p.request_id) FROM predictions p ANTI JOIN shadow s USING (request_id) "
            "WHERE p.shadow_sampled",
        )
        strangers = _one(
            db,
            "SELECT count(*) FROM shadow s "
            "ANTI JOIN (SELECT request_id FROM predictions WHERE shadow_sampled) p USING (request_id) "
            "WHERE s.request_id IS NOT NULL",
        )
    return Ledger(
        **logs,
        sampled=sampled,
        scored=sum(count for (outcome, _), count in reasons.items() if outcome == "scored"),
        shadow_dropped={reason: count for (outcome, reason), count in sorted(reasons.items()) if outcome != "scored"},
        unrecorded=unrecorded,
        strangers=strangers,
        exact=strangers == 0 and all(k.repeated == 0 and k.damaged <= k.dropped for k in logs.values()),
    )


_COLUMNS = {
    "request_id": "VARCHAR",
    "seq": "BIGINT",
    "closed": "BOOLEAN",
    "shadow_sampled": "BOOLEAN",
    "outcome": "VARCHAR",
    "reason": "VARCHAR",
    "label": "DOUBLE",
}


def _kept(db: duckdb.DuckDBPyConnection, folder: Path, table: str) -> Kept:
    segments = sorted(str(path) for path in folder.glob("*.jsonl") if path.stat().st_size)
    source = "SELECT NULL::VARCHAR AS filename, " + ", ".join(f"NULL::{t} AS {n}" for n, t in _COLUMNS.items())
    if segments:
        db.execute("SET VARIABLE segments = ?", [segments])
        columns = "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in _COLUMNS.items()) + "}"
        source = (
            "SELECT * FROM read_json(getvariable('segments'), format='newline_delimited', ignore_errors=true, "
            f"columns={columns}, filename=true)"
        )
    db.execute(
        f"CREATE TEMP TABLE {table} AS SELECT *, regexp_replace(filename, '-[0-9]+\\.jsonl$', '') AS writer "
        f"FROM ({source}) WHERE filename IS NOT NULL"
    )
    whole = "request_id IS NOT NULL"
    rows = db.execute(
        f"SELECT coalesce(max(seq), 0), count(*) FILTER ({whole} AND seq IS NOT NULL), "
        f"count(*) FILTER (NOT {whole} AND closed IS NULL), count(*) FILTER ({whole} AND seq IS NULL), "
        f"count(*) FILTER ({whole} AND seq IS NOT NULL) - count(DISTINCT seq) FILTER ({whole}) "
        f"FROM {table} GROUP BY writer"
    ).fetchall()
    served, logged, damaged, unnumbered, repeated = (sum(int(row[i]) for row in rows) for i in range(5))
    return Kept(len(rows), served, logged, served - logged + repeated, damaged, unnumbered, repeated)


def _one(db: duckdb.DuckDBPyConnection, query: str) -> int:
    ((count,),) = db.execute(query).fetchall()
    return int(count)


def main() -> int:
    """Command line; exit code 1 when something is not accounted for."""
    found = ledger(settings().log_dir)
    for name in ("predictions", "shadow", "labels"):
        kept: Kept = getattr(found, name)
        print(
            f"{name:12} {kept.served:9,} served = {kept.logged:9,} logged + {kept.dropped:7,} dropped "
            f"({kept.damaged} damaged lines, {kept.writers} writers)"
        )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in found.shadow_dropped.items()) or "0"
    print(
        f"rehearsed    {found.sampled:9,} sampled = {found.scored:9,} scored + {dropped} dropped "
        f"+ {found.unrecorded:,} unrecorded"
    )
    print(json.dumps(asdict(found)))
    return 0 if found.exact else 1


if __name__ == "__main__":
    sys.exit(main())
