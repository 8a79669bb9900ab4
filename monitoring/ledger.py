"""Whether everything is accounted for: what was answered, logged and lost; what each shadow was offered and did of it.

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
class Rehearsed:
    """What became of the requests one slot was offered: ``sampled = scored + sum(dropped) + unrecorded``.

    Attributes:
        sampled: predictions its shadow was to rehearse.
        scored: of them scored.
        dropped: of them dropped, by reason.
        unrecorded: of them without a shadow record: their process was killed, or the record was lost.
    """

    sampled: int
    scored: int
    dropped: dict[str, int]
    unrecorded: int


@dataclass(frozen=True)
class Ledger:
    """All of it.

    Attributes:
        sampled, scored, shadow_dropped, unrecorded: of all slots together.
        slots: of each slot.
        again: records of the primary being asked once more, for the noise floor; part of nothing above.
        strangers: records of a slot that was not offered the request, or of the primary for a request not in the log.
        exact: nothing is repeated, nobody is a stranger, and every loss is a numbered one.
    """

    predictions: Kept
    shadow: Kept
    labels: Kept
    sampled: int
    scored: int
    shadow_dropped: dict[str, int]
    unrecorded: int
    slots: dict[str, Rehearsed]
    again: int
    strangers: int
    exact: bool


def ledger(log_dir: Path) -> Ledger:
    """Account for the logs below a folder."""
    with duckdb.connect() as db:
        logs = {name: _kept(db, log_dir / name, name) for name in ("predictions", "shadow", "labels")}
        db.execute(_OFFERED)
        db.execute(_TOLD)
        slots = _slots(db)
        again = _one(db, "SELECT count(*) FROM told WHERE slot = 'primary'")
        strangers = _one(
            db, "SELECT count(*) FROM told ANTI JOIN offered USING (request_id, slot) WHERE slot <> 'primary'"
        ) + _one(db, "SELECT count(*) FROM told ANTI JOIN predictions USING (request_id) WHERE slot = 'primary'")
    dropped: Counter[str] = Counter()
    for each in slots.values():
        dropped.update(each.dropped)
    return Ledger(
        **logs,
        sampled=sum(each.sampled for each in slots.values()),
        scored=sum(each.scored for each in slots.values()),
        shadow_dropped=dict(sorted(dropped.items())),
        unrecorded=sum(each.unrecorded for each in slots.values()),
        slots=slots,
        again=again,
        strangers=strangers,
        exact=strangers == 0 and all(k.repeated == 0 and k.damaged <= k.dropped for k in logs.values()),
    )


# A log from before there were several slots names none: then it is the first one's.
_OFFERED = """
CREATE TEMP TABLE offered AS SELECT DISTINCT request_id, unnest(
    CASE WHEN shadows IS NOT NULL THEN shadows WHEN shadow_sampled THEN ['shadow'] ELSE [] END
) AS slot FROM predictions WHERE request_id IS NOT NULL
"""
_TOLD = """
CREATE TEMP TABLE told AS SELECT request_id, coalesce(shadow, 'shadow') AS slot, outcome, coalesce(reason, '') AS reason
FROM shadow WHERE request_id IS NOT NULL
"""


def _slots(db: duckdb.DuckDBPyConnection) -> dict[str, Rehearsed]:
    # Of a request with several records, as when a caller sends one id twice, a score counts.
    db.execute(
        "CREATE TEMP TABLE once AS SELECT request_id, slot, max(outcome) AS outcome, "
        "arg_max(reason, outcome) AS reason FROM told GROUP BY request_id, slot"
    )
    found: dict[str, dict[tuple[str, str], int]] = {}
    for slot, outcome, reason, count in db.execute(
        "SELECT slot, coalesce(outcome, 'none'), coalesce(reason, ''), count(*) FROM offered LEFT JOIN once "
        "USING (request_id, slot) GROUP BY ALL ORDER BY ALL"
    ).fetchall():
        found.setdefault(slot, {})[outcome, reason] = int(count)
    sampled = dict(db.execute("SELECT slot, count(*) FROM offered GROUP BY slot").fetchall())
    return {
        slot: Rehearsed(
            sampled=int(sampled[slot]),
            scored=sum(n for (outcome, _), n in counts.items() if outcome == "scored"),
            dropped={reason: n for (outcome, reason), n in counts.items() if outcome not in ("scored", "none")},
            unrecorded=sum(n for (outcome, _), n in counts.items() if outcome == "none"),
        )
        for slot, counts in found.items()
    }


_COLUMNS = {
    "request_id": "VARCHAR",
    "seq": "BIGINT",
    "closed": "BOOLEAN",
    "shadow_sampled": "BOOLEAN",
    "shadows": "VARCHAR[]",
    "shadow": "VARCHAR",
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
    for slot, each in found.slots.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in each.dropped.items()) or "0"
        print(
            f"{slot:12} {each.sampled:9,} sampled = {each.scored:9,} scored + {dropped} dropped "
            f"+ {each.unrecorded:,} unrecorded"
        )
    print(f"primary      {found.again:9,} asked again, for the noise floor; {found.strangers:,} records of nobody")
    print(json.dumps(asdict(found)))
    return 0 if found.exact else 1


if __name__ == "__main__":
    sys.exit(main())
