"""Logs shipped into a real PostgreSQL: every line exactly once, whatever happens to shipper, server and segments."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from deploy.demo import free_port
from monitoring.shipping import unsecret
from service.prediction_log import SegmentLog
from service.settings import ROOT
from tests.monitoring.logs import START, campaign, label_line, line_of, prediction_line
from tests.services.test_mlflow import program, unprivileged

pytestmark = pytest.mark.services
SECRET = "hunter2-hunter2"


class Cluster:
    """A PostgreSQL of the tests' own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        made = subprocess.run(
            [*unprivileged(), program("initdb"), "-D", str(folder / "data"), "-U", "ship", "-A", "trust", "--no-sync"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        self._control("start", "-o", f"-p {self.port} -h 127.0.0.1 -k {folder} -c fsync=off")

    def _control(self, *what: str) -> None:
        command = [*unprivileged(), program("pg_ctl"), "-D", str(self.folder / "data"), "-w", "-s"]
        done = subprocess.run(
            [*command, "-l", str(self.folder / "log"), *what], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Stop at once, as a crash would."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start again."""
        self._control("start", "-o", f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off")

    def dsn(self, database: str = "postgres") -> str:
        """Address of a database, with a password nobody asks for."""
        return f"postgresql://ship:{SECRET}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not below pytest's folder, which only its owner may enter; the socket's path must be short, too.
    made = subprocess.check_output([*unprivileged(), "mktemp", "-d", "/tmp/understudy-pg-XXXXXX"], text=True)
    folder = Path(made.strip())
    try:
        found = Cluster(folder)
        try:
            yield found
        finally:
            found.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """Address of an empty database."""
    name = f"d{abs(hash(request.node.name))}"
    with psycopg.connect(cluster.dsn(), autocommit=True) as db:
        db.execute(f'CREATE DATABASE "{name}"')
    return cluster.dsn(name)


def environment(dsn: str, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UNDERSTUDY_", "PG"))}
    return kept | {
        "UNDERSTUDY_SHIP_DSN": dsn, "UNDERSTUDY_STATE_DIR": str(folder / "state"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def started(dsn: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A shipper of the logs below a state folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "monitoring.shipping_job", *arguments], env=environment(dsn, folder), text=True,
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def shipped(dsn: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a shipper that does its work says at last."""
    process = started(dsn, folder, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def logs_in(folder: Path) -> Path:
    return folder / "state" / "logs"


def write_predictions(folder: Path, count: int, segment_bytes: int = 20_000_000) -> None:
    """A log of one writer with numbers from 1 to ``count``."""
    log = SegmentLog(logs_in(folder) / "predictions", segment_bytes)
    line = campaign(1).predictions[0]
    for i in range(count):
        assert log.append({**line, "request_id": f"r{i}", "at": START + timedelta(seconds=i)})
    log.close()


def asked(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as db:
        return db.execute(query.encode()).fetchall()


def numbers(dsn: str) -> tuple[int, int, int]:
    """Rows, distinct numbers, highest number of the predictions."""
    (found,) = asked(dsn, "SELECT count(*), count(DISTINCT (segment_id, seq)), max(seq) FROM understudy.predictions")
    return found[0], found[1], found[2]


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


@pytest.mark.parametrize(
    "damage",
    [
        b"no json",
        b"\xff\xfe\x00\x01",
        b"[1, 2]",
        b'{"request_id": "x"}',
        b'{"request_id": "x", "at": "yesterday", "role": "primary", "prediction": 0.5}',
        b'{"request_id": "x", "at": "2013-10-01T00:00:00", "role": "primary", "prediction": 0.5}',
        b'{"request_id": "x", "at": "2013-10-01T00:00:00Z", "role": "primary", "prediction": "high"}',
        b'{"request_id": "x", "at": "2013-10-01T00:00:00Z", "role": "primary", "prediction": 0.5, "seq": -1}',
        b"",
    ],
)
def test_a_damaged_line_is_counted_and_kept_aside(database: str, tmp_path: Path, damage: bytes) -> None:
    campaign(4).write(logs_in(tmp_path), segments=1)
    segment = next(logs_in(tmp_path).glob("predictions/*.jsonl"))
    lines = segment.read_bytes().splitlines()
    segment.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:], b""]))

    found = shipped(database, tmp_path)

    assert (found["rows"], found["damaged"], found["behind_bytes"]) == (12, 1, 0)
    assert asked(database, "SELECT line, bytes FROM understudy.damaged") == [(damage, len(damage))]
    assert shipped(database, tmp_path)["damaged"] == 0


def test_content_only_the_database_refuses_is_put_aside_too(database: str, tmp_path: Path) -> None:
    logs = campaign(20)
    logs.predictions[7]["request_id"] = os.urandom(4000).hex()
    logs.predictions[9]["fallback_reason"] = "a\0b"
    logs.write(logs_in(tmp_path))

    found = shipped(database, tmp_path)

    assert (found["rows"], found["damaged"]) == (59, 1)
    assert asked(database, "SELECT fallback_reason FROM understudy.predictions WHERE fallback_reason <> ''") == [
        ("a�b",)
    ]
    assert asked(database, "SELECT sum(altered) FROM understudy.segments") == [(1,)]


def test_segments_deleted_before_they_were_shipped_are_missing(database: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, 200, segment_bytes=50_000)
    segments = sorted(logs_in(tmp_path).glob("predictions/*.jsonl"))
    gone = len(segments[1].read_bytes().splitlines())
    segments[1].unlink()

    found = shipped(database, tmp_path)

    assert len(segments) > 3
    assert found["missing"] == {"predictions": gone, "shadow": 0, "labels": 0}
    assert found["rows"] == 200 - gone


def test_segments_deleted_afterwards_are_not_missing(database: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, 200, segment_bytes=50_000)
    shipped(database, tmp_path)
    for path in logs_in(tmp_path).glob("predictions/*.jsonl"):
        path.unlink()

    found = shipped(database, tmp_path)

    assert (found["segments"], found["missing"]["predictions"], numbers(database)[0]) == (0, 0, 200)


def test_what_a_writer_lost_is_missing_and_told_by_its_closing_line(database: str, tmp_path: Path) -> None:
    log = SegmentLog(logs_in(tmp_path) / "predictions", 10**6)
    line = prediction_line("r0", START, {"origin": "EWR", "carrier": "UA"}, 0.2)
    assert log.append(line)
    assert not log.append({**line, "request": {"n": 2**70}})
    log.close()

    found = shipped(database, tmp_path)

    assert (found["rows"], found["damaged"], found["missing"]["predictions"]) == (1, 0, 1)


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


def test_a_segment_that_became_shorter_is_refused_and_the_others_are_shipped(database: str, tmp_path: Path) -> None:
    logs = campaign(6)
    logs.write(logs_in(tmp_path))
    shipped(database, tmp_path)
    first, second = sorted(logs_in(tmp_path).glob("predictions/*.jsonl"))
    first.write_bytes(first.read_bytes()[:-50])
    with second.open("ab") as file:
        file.write(line_of({**logs.predictions[0], "request_id": "more"}))

    process = started(database, tmp_path)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert f"{first.name}: shorter than what was copied" in err
    assert numbers(database)[0] == 7


def test_tables_of_a_newer_version_are_left_alone(database: str, tmp_path: Path) -> None:
    campaign(2).write(logs_in(tmp_path))
    shipped(database, tmp_path)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("UPDATE understudy.schema_version SET version = 99")

    process = started(database, tmp_path)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, "ship with the newer version" in err) == (2, True)


def test_a_shipper_needs_no_right_to_make_tables_that_are_there(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    campaign(2).write(logs_in(tmp_path))
    shipped(database, tmp_path)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS only_ship")
        db.execute("CREATE ROLE only_ship LOGIN")
        db.execute("GRANT USAGE ON SCHEMA understudy TO only_ship")
        db.execute("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA understudy TO only_ship")
        db.execute("GRANT UPDATE ON understudy.segments TO only_ship")
    more = tmp_path / "more"
    campaign(2).write(more)
    for path in sorted(more.glob("*/*.jsonl")):
        path.rename(logs_in(tmp_path) / path.parent.name / path.name.replace("-7-", "-8-"))

    found = shipped(database.replace("ship:", "only_ship:"), tmp_path)

    assert found["rows"] == 6
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("DROP OWNED BY only_ship")
        db.execute("DROP ROLE only_ship")


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


@pytest.mark.parametrize(
    ("dsn", "code"),
    [
        (f"postgresql://ship:{SECRET}@[::1", 2),
        (f"host=127.0.0.1 port=1 password={SECRET}", 1),
        (f"postgresql://ship:pa@{SECRET}@127.0.0.1:1/x", 1),
        (f"postgresql://ship:pa/{SECRET}@127.0.0.1:1/x", 1),
        (f"host=127.0.0.1 {SECRET}", 2),
    ],
)
def test_no_message_shows_the_password(tmp_path: Path, dsn: str, code: int) -> None:
    campaign(1).write(logs_in(tmp_path))

    process = started(dsn, tmp_path)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, err.startswith("ship: ")) == (code, True)
    assert SECRET not in out + err


def test_without_logs_it_says_what_to_do(database: str, tmp_path: Path) -> None:
    process = started(database, tmp_path)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, "run `make serve` first" in err) == (2, True)


def test_a_refused_password_is_not_repeated() -> None:
    dsn = "postgresql://u:s3cret@word@h/db"

    assert unsecret("no host word@h, tried s3cret", dsn) == "no host ***@h, tried ***"
