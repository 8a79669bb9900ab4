"""Runs the shipper as a command, and asks what has arrived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from service.prediction_log import SegmentLog
from service.settings import ROOT
from tests.monitoring.logs import START, campaign


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
