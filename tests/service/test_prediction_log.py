"""Lines on disk: whole, in order, and never at the price of an answer."""

from __future__ import annotations

import errno
import fcntl
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.clock import WallClock
from service.prediction_log import _RETRY_S, SegmentLog
from service.retention import Keep, sweep

RETRY_S = _RETRY_S + 0.05


def lines(folder: Path) -> list[dict[str, object]]:
    """All records below a folder, segment by segment, without their numbers."""
    found = numbered(folder)
    return [{key: value for key, value in record.items() if key != "seq"} for record in found]


def numbered(folder: Path) -> list[dict[str, object]]:
    """The same with their numbers."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_records_come_back_in_order_across_segments(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=100)

    kept = [log.append({"i": i, "x": 0.1 + 0.2, "nan": float("nan")}) for i in range(20)]

    assert all(kept)
    assert len(list(tmp_path.glob("*.jsonl"))) > 1
    assert lines(tmp_path) == [{"i": i, "x": 0.30000000000000004, "nan": None} for i in range(20)]


def test_a_killed_process_loses_no_record_it_was_told_is_kept(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.prediction_log import SegmentLog\n"
        "log = SegmentLog(Path(sys.argv[1]), 10_000)\n"
        "for i in range(10**9):\n"
        "    assert log.append({'i': i}); print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(2000)]
    child.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines()]
    child.wait()
    child.stdout.close()

    assert [r["i"] for r in lines(tmp_path)][: len(acknowledged)] == acknowledged


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_half_line(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=10**9)
    assert log.append({"i": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        refused = [log.append({"i": 1, "text": "x" * 100}) for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert refused == [False, False, False]
    time.sleep(RETRY_S)
    assert log.append({"i": 2})
    assert lines(tmp_path) == [{"i": 0}, {"i": 2}]
    assert [record["seq"] for record in numbered(tmp_path)] == [1, 5]


def test_records_written_together_are_numbered_one_by_one_and_kept_all_or_none(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=10**9)
    assert log.extend([{"i": 0}, {"i": 1}]) == 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        refused = log.extend([{"i": 2}, {"i": 3, "text": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    time.sleep(RETRY_S)

    kept = log.extend([{"i": 4}, {"too large": 2**70}, {"i": 6}])

    assert (refused, kept) == (0, 2)
    assert [(record["i"], record["seq"]) for record in numbered(tmp_path)] == [(0, 1), (1, 2), (4, 5), (6, 7)]
    assert log.extend([]) == 0


def test_logging_heals_when_its_folder_can_be_written_again(tmp_path: Path) -> None:
    blocked = tmp_path / "logs"
    blocked.write_text("a file where the folder should be")
    log = SegmentLog(blocked, 1000)
    assert not log.append({"i": 0})

    blocked.unlink()
    time.sleep(RETRY_S)

    assert log.append({"i": 1})
    assert lines(blocked) == [{"i": 1}]


def test_no_record_is_written_to_a_segment_that_somebody_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = SegmentLog(folder, segment_bytes=10**9)
    assert log.append({"i": 0})
    shutil.rmtree(folder)

    assert [log.append({"i": i}) for i in (1, 2)] == [True, True]

    assert numbered(folder) == [{"i": 1, "seq": 2}, {"i": 2, "seq": 3}]
    assert len(list(folder.glob("*.jsonl"))) == 1


def test_writers_that_start_in_the_same_second_with_the_same_process_id_keep_all_records(tmp_path: Path) -> None:
    writers = [SegmentLog(tmp_path, 1000) for _ in range(3)]

    kept = [writer.append({"i": i}) for i, writer in enumerate(writers) for _ in range(2)]

    assert all(kept)
    assert sorted(str(r["i"]) for r in lines(tmp_path)) == ["0", "0", "1", "1", "2", "2"]


def test_a_segment_that_cannot_be_made_is_skipped_not_tried_for_ever(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, 1)
    assert log.append({"i": 0})
    first = next(tmp_path.glob("*.jsonl"))
    first.with_name(first.name.replace("-00000", "-00001")).write_text("")

    failed = log.append({"i": 1})
    time.sleep(RETRY_S)

    assert not failed
    assert log.append({"i": 2})


def test_a_record_that_cannot_be_written_down_is_a_drop_not_an_exception(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, 1000)

    assert not log.append({"n": 2**70})
    assert log.append({"n": 1})


def test_every_record_has_a_number_kept_or_not(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, 100)

    for i in range(6):
        log.append({"i": 2**70 if i == 3 else i})

    assert [record["seq"] for record in numbered(tmp_path)] == [1, 2, 3, 5, 6]


def test_losses_after_the_last_line_are_told_when_the_log_is_closed(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, 1000)
    log.append({"i": 0})
    log.append({"i": 2**70})

    log.close()

    assert numbered(tmp_path) == [{"i": 0, "seq": 1}, {"closed": True, "seq": 2}]


def test_a_log_that_lost_nothing_ends_with_its_last_record(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, 1000)
    log.append({"i": 0})

    log.close()

    assert numbered(tmp_path) == [{"i": 0, "seq": 1}]


def test_a_dead_disk_is_not_asked_by_every_record(tmp_path: Path) -> None:
    blocked = tmp_path / "logs"
    blocked.write_text("a file where the folder should be")
    log = SegmentLog(blocked, 1000)
    log.append({"i": 0})

    blocked.unlink()
    at_once = log.append({"i": 1})
    time.sleep(RETRY_S)

    assert not at_once
    assert log.append({"i": 2})
    assert numbered(blocked) == [{"i": 2, "seq": 3}]


def test_where_nothing_can_be_locked_all_is_kept_in_one_segment_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unlockable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unlockable)
    log = SegmentLog(tmp_path, 1000)

    kept = [log.append({"i": i}) for i in range(30)]
    log.close()

    assert all(kept)
    assert len(lines(tmp_path)) == 30
    assert len(list(tmp_path.iterdir())) == 1
    assert [m for m in caplog.messages if "cannot be locked" in m] == caplog.messages
    assert len(caplog.messages) == 1
    assert sweep(tmp_path, Keep(most_bytes=1), WallClock()) == []
