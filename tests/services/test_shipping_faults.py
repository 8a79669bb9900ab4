"""What cannot be shipped: counted, kept aside, and said; and what no message shows."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from monitoring.shipping import unsecret
from service.prediction_log import SegmentLog
from tests.monitoring.logs import START, campaign, line_of, prediction_line
from tests.services.postgres import SECRET, Cluster
from tests.services.shipper import asked, logs_in, numbers, shipped, started, write_predictions

pytestmark = pytest.mark.services


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
