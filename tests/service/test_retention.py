"""Old segments go, open ones and strangers stay."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.clock import ManualClock
from service.prediction_log import SegmentLog
from service.retention import Keep, Retention, sweep

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def finished(folder: Path, number: int, age_days: float, size: int = 100) -> Path:
    """A segment that nobody writes any more."""
    folder.mkdir(exist_ok=True)
    path = folder / f"20260101T000000-1-abcdef-{number:05d}.jsonl"
    path.write_bytes(b"x" * size)
    at = (NOW - timedelta(days=age_days)).timestamp()
    os.utime(path, (at, at))
    return path


def test_what_is_older_than_allowed_goes(tmp_path: Path) -> None:
    old, young = finished(tmp_path, 1, 8), finished(tmp_path, 2, 6)

    gone = sweep(tmp_path, Keep(days=7), ManualClock(NOW))

    assert gone == [old]
    assert young.exists()


def test_the_oldest_go_until_the_rest_is_small_enough(tmp_path: Path) -> None:
    segments = [finished(tmp_path, i, 10 - i) for i in range(5)]

    gone = sweep(tmp_path, Keep(most_bytes=250), ManualClock(NOW))

    assert gone == segments[:3]


@pytest.mark.parametrize("keep", [Keep(days=1), Keep(most_bytes=1)])
def test_a_segment_somebody_writes_stays(tmp_path: Path, keep: Keep) -> None:
    log = SegmentLog(tmp_path, 10_000)
    log.append({"i": 0})
    (path,) = tmp_path.glob("*.jsonl")
    os.utime(path, (0, 0))

    assert sweep(tmp_path, keep, ManualClock(NOW)) == []

    log.close()
    assert sweep(tmp_path, keep, ManualClock(NOW)) == [path]


def test_what_is_no_segment_stays(tmp_path: Path) -> None:
    other = tmp_path / "notes.jsonl"
    other.write_text("mine")
    os.utime(other, (0, 0))

    assert sweep(tmp_path, Keep(days=1, most_bytes=1), ManualClock(NOW)) == []


def test_nothing_goes_when_everything_is_kept(tmp_path: Path) -> None:
    finished(tmp_path, 1, 10_000)

    assert sweep(tmp_path, Keep(), ManualClock(NOW)) == []


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", Keep(days=1), ManualClock(NOW)) == []


def test_a_running_service_sweeps(tmp_path: Path) -> None:
    old = finished(tmp_path, 1, 10_000)

    async def run() -> None:
        retention = Retention([tmp_path], Keep(days=1), every_s=0.01)
        retention.start()
        async with asyncio.timeout(10):
            while old.exists():
                await asyncio.sleep(0.01)
        await retention.close()

    asyncio.run(run())
