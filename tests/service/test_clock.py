"""One source of now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.clock import FileClock, ManualClock, OffsetClock, WallClock, clock_from, write_clock
from service.errors import NotReady
from service.settings import ROOT

AT = datetime(2013, 10, 1, 12, tzinfo=UTC)


def test_a_file_clock_follows_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    write_clock(path, AT)
    clock = FileClock(path)

    seen = [clock.now()]
    for minutes in range(1, 50):
        write_clock(path, AT + timedelta(minutes=minutes))
        seen.append(clock.now())

    assert seen == [AT + timedelta(minutes=m) for m in range(50)]


def test_a_clock_that_can_no_longer_be_read_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    write_clock(path, AT)
    clock = FileClock(path)

    path.unlink()

    assert clock.now() == AT


@pytest.mark.parametrize("content", [None, "", "yesterday"])
def test_a_clock_file_that_says_no_time_is_an_error_that_says_what_to_do(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "clock"
    if content is not None:
        path.write_text(content)

    with pytest.raises(NotReady, match="make replay"):
        FileClock(path)


def test_the_setting_chooses_the_clock(tmp_path: Path) -> None:
    write_clock(tmp_path / "clock", AT)

    assert isinstance(clock_from("wall"), WallClock)
    assert isinstance(clock_from(str(tmp_path / "clock")), FileClock)
    started = clock_from("2013-10-01T12:00:00")
    assert isinstance(started, OffsetClock)
    assert timedelta(0) <= started.now() - AT < timedelta(seconds=5)


def test_a_manual_clock_stands_still_until_moved() -> None:
    clock = ManualClock(AT)
    clock.set(AT - timedelta(days=1))

    assert clock.now() == AT - timedelta(days=1)


def test_nothing_else_asks_the_machine_for_business_time() -> None:
    asks = re.compile(r"datetime\.(?:now|utcnow|today)\(|\btime\.time\(|Timestamp\.(?:now|utcnow)\(|date\.today\(")
    stages = ("service", "training", "monitoring", "deploy", "feature_repo")

    hits = [
        str(path.relative_to(ROOT))
        for stage in stages
        for path in (ROOT / stage).rglob("*.py")
        if path.name != "clock.py" and asks.search(path.read_text())
    ]

    assert hits == []
