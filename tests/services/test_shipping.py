"""Logs shipped into a real PostgreSQL: every line exactly once, whatever happens to shipper and server."""

from __future__ import annotations

import json
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import orjson
import psycopg
import pytest

from service.prediction_log import SegmentLog
from service.settings import ROOT
from tests.monitoring.logs import START, campaign, label_line, line_of
from tests.services.postgres import SECRET, Cluster
from tests.services.shipper import asked, logs_in, numbers, shipped, started, write_predictions

pytestmark = pytest.mark.services


def test_every_line_of_the_three_logs_arrives_and_a_second_run_adds_nothing(database: str, tmp_path: Path) -> None:
    campaign(300).write(logs_in(tmp_path))

    first, second = shipped(database, tmp_path), shipped(database, tmp_path)

    assert (first["segments"], first["rows"], first["already"], first["behind_bytes"]) == (6, 900, 0, 0)
    assert (second["segments"], second["rows"], second["already"], second["behind_bytes"]) == (6, 0, 900, 0)
    for log in ("predictions", "shadow", "labels"):
        lines = [line for p in sorted(logs_in(tmp_path).glob(f"{log}/*.jsonl")) for line in p.read_bytes().splitlines()]
        rows = asked(database, f"SELECT record FROM understudy.{log} ORDER BY segment_id, start")
        assert [row[0] for row in rows] == [orjson.loads(line) for line in lines]


def test_columns_hold_what_the_record_says(database: str, tmp_path: Path) -> None:
    campaign(5).write(logs_in(tmp_path))
    shipped(database, tmp_path)

    wrong = asked(
        database,
        "SELECT request_id FROM understudy.predictions WHERE request_id <> record->>'request_id' "
        "OR at <> (record->>'at')::timestamptz OR prediction <> (record->>'prediction')::float8 "
        "OR role <> record->>'role' OR shadow_sampled <> (record->>'shadow_sampled')::bool",
    )

    assert wrong == []
    assert asked(database, "SELECT count(*) FROM understudy.shadow WHERE outcome = 'scored' AND latency_ms > 0") == [
        (5,)
    ]


def test_a_shipper_killed_on_its_way_leaves_each_line_once(database: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, 60_000)
    killed_at: list[int] = []
    for _ in range(3):
        process = started(database, tmp_path)
        before, deadline = killed_at[-1] if killed_at else 0, time.monotonic() + 60
        while progress(database) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed_at.append(progress(database))

    last = shipped(database, tmp_path)

    assert 0 < killed_at[0] < 60_000
    assert numbers(database) == (60_000, 60_000, 60_000)
    assert (last["already"], last["rows"], last["behind_bytes"]) == (killed_at[-1], 60_000 - killed_at[-1], 0)


def test_a_shipper_killed_between_its_rows_and_its_mark_leaves_neither(database: str, tmp_path: Path) -> None:
    campaign(1).write(logs_in(tmp_path))
    shipped(database, tmp_path)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(3); RETURN NEW; END $$"
        )
        db.execute("CREATE TRIGGER pause BEFORE UPDATE ON understudy.segments FOR EACH ROW EXECUTE FUNCTION pause()")
    write_predictions(tmp_path, 50)
    process = started(database, tmp_path)
    deadline = time.monotonic() + 60
    while not pausing(database) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while pausing(database):
        time.sleep(0.1)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("DROP TRIGGER pause ON understudy.segments")
    left = progress(database), numbers(database)[0]

    found = shipped(database, tmp_path)

    assert left == (3, 1)
    assert (found["rows"], numbers(database)[0]) == (50, 51)


def pausing(dsn: str) -> bool:
    """Whether a shipper waits in the trigger, with its rows written."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'UPDATE understudy%'"
    return bool(asked(dsn, query)[0][0])


def progress(dsn: str) -> int:
    """Rows committed so far."""
    try:
        return int(asked(dsn, "SELECT coalesce(sum(rows), 0) FROM understudy.segments")[0][0])
    except psycopg.errors.UndefinedTable:
        return 0


def test_a_server_that_goes_away_loses_nothing(cluster: Cluster, database: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, 30_000, segment_bytes=4_000_000)
    process = started(database, tmp_path)
    deadline = time.monotonic() + 60
    while not progress(database) and time.monotonic() < deadline:
        time.sleep(0.02)
    cluster.stop()
    out, err = process.communicate(timeout=60)
    away = started(database, tmp_path)
    away_out, away_err = away.communicate(timeout=60)
    cluster.start()

    last = shipped(database, tmp_path)

    assert (process.returncode, away.returncode) == (1, 1)
    assert "nothing is lost" in away_err
    assert SECRET not in out + err + away_out + away_err
    assert last["rows"] + last["already"] == 30_000
    assert numbers(database)[0] == 30_000


def test_two_shippers_at_once_share_the_work(database: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, 20_000, segment_bytes=2_000_000)

    both = [started(database, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    said = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert sum(found["rows"] for found in said) == 20_000
    assert numbers(database)[0] == 20_000


def test_a_torn_tail_waits_and_arrives_when_it_is_whole(database: str, tmp_path: Path) -> None:
    logs = campaign(3)
    logs.write(logs_in(tmp_path), segments=1)
    segment = next(logs_in(tmp_path).glob("predictions/*.jsonl"))
    line = line_of({**logs.predictions[0], "request_id": "late"})
    with segment.open("ab") as file:
        file.write(line[:100])
    torn = shipped(database, tmp_path)
    with segment.open("ab") as file:
        file.write(line[100:])

    whole = shipped(database, tmp_path)

    assert (torn["rows"], torn["damaged"], torn["behind_bytes"]) == (9, 0, 100)
    assert (whole["rows"], whole["damaged"], whole["behind_bytes"]) == (1, 0, 0)
    assert asked(database, "SELECT count(*) FROM understudy.predictions WHERE request_id = 'late'") == [(1,)]


def test_a_growing_log_is_followed_for_a_while(database: str, tmp_path: Path) -> None:
    log = SegmentLog(logs_in(tmp_path) / "predictions", 10**6)
    line = campaign(1).predictions[0]
    log.append({**line, "request_id": "first"})
    process = started(database, tmp_path, "--follow", "0.3", "--for", "6")
    deadline = time.monotonic() + 30
    while not progress(database) and time.monotonic() < deadline:
        time.sleep(0.05)
    log.append({**line, "request_id": "second"})

    out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["rows"] == 2
    assert numbers(database)[0] == 2


def test_outcomes_have_one_row_per_request_and_the_newest_label(database: str, tmp_path: Path) -> None:
    logs = campaign(3)
    (a, b, c), known = logs.predictions, START + timedelta(days=20)
    logs.labels = [
        label_line(a["request_id"], 1.0, known),
        label_line(a["request_id"], 0.0, known + timedelta(hours=1)),
        label_line(a["request_id"], 1.0, known - timedelta(hours=1)),
        label_line(b["request_id"], 1.0, b["at"] - timedelta(hours=1)),
    ]
    logs.predictions.append({**a, "at": a["at"] + timedelta(hours=2), "prediction": 0.99})
    logs.write(logs_in(tmp_path))
    shipped(database, tmp_path)

    rows = asked(database, "SELECT request_id, prediction, label, label_lines FROM understudy.outcomes ORDER BY 1")

    assert rows == [
        (a["request_id"], a["prediction"], 0.0, 3),
        (b["request_id"], b["prediction"], None, 0),
        (c["request_id"], c["prediction"], None, 0),
    ]
    assert asked(database, "SELECT count(*) FROM understudy.labels") == [(4,)]


def test_the_questions_of_the_documentation_have_answers(database: str, tmp_path: Path) -> None:
    logs = campaign(200)
    logs.labels.append({**logs.labels[0], "label": 1 - logs.labels[0]["label"]})
    logs.predictions[3]["fallback_reason"] = "circuit_open"
    logs.write(logs_in(tmp_path))
    shipped(database, tmp_path)

    questions = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/shipping.md").read_text(), re.DOTALL)

    assert len(questions) == 7
    assert [question for question in questions if not asked(database, question)] == []


def test_how_far_behind_the_database_is_becomes_a_series(database: str, tmp_path: Path) -> None:
    campaign(2).write(logs_in(tmp_path), segments=1)
    with next(logs_in(tmp_path).glob("labels/*.jsonl")).open("ab") as file:
        file.write(b'{"torn')

    shipped(database, tmp_path)

    series = (tmp_path / "state/monitoring/ship.prom").read_text()
    assert "understudy_ship_behind_bytes 6.0" in series
    assert 'understudy_ship_missing_records{log="labels"} 0.0' in series
