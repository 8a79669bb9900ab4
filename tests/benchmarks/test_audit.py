"""The audit of `make chaos`: every sampled request has a record, or a reason that is counted once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.audit import Ledger, LogLines, check_ledger, read_log

KILLED, ALIVE = 11, 22


def log(folder: Path, written: Mapping[int, Sequence[tuple[int, str]]]) -> LogLines:
    """Write a segment for each process, of (``seq``, request id), and read them."""
    folder.mkdir()
    for pid, records in written.items():
        lines = [
            json.dumps({"seq": n, "request_id": name, "shadow_sampled": True, "outcome": "scored", "reason": None})
            for n, name in records
        ]
        (folder / f"host-{pid}-0a-000001.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return read_log([folder])


@pytest.fixture
def predictions(tmp_path: Path) -> LogLines:
    return log(tmp_path / "predictions", {KILLED: [(1, "a"), (2, "b"), (3, "c")], ALIVE: [(1, "d"), (2, "e")]})


def test_a_record_written_again_because_its_segment_was_deleted_is_one(tmp_path: Path) -> None:
    kept = log(tmp_path / "kept", {ALIVE: [(2, "b"), (3, "c")]})
    log(tmp_path / "rescued", {ALIVE: [(1, "a"), (2, "b")]})
    (tmp_path / "rescued/host-22-0a-000001.jsonl").rename(tmp_path / "rescued/host-22-0a-000000.jsonl")

    both = read_log([tmp_path / "kept", tmp_path / "rescued"])

    assert (len(kept.lines), len(both.lines), both.gaps, kept.gaps) == (2, 3, 0, 1)


def test_a_record_that_stands_twice_in_one_segment_is_two(tmp_path: Path) -> None:
    assert len(log(tmp_path / "twice", {ALIVE: [(1, "a"), (1, "a")]}).lines) == 2


def checked(predictions: LogLines, shadow: LogLines, unwritten: int) -> Ledger:
    return check_ledger(predictions, shadow, unwritten=unwritten, counter=5, killed=frozenset({KILLED}))


def test_all_that_was_sampled_is_on_record(predictions: LogLines, tmp_path: Path) -> None:
    shadow = log(tmp_path / "shadow", {KILLED: [(1, "a"), (2, "b"), (3, "c")], ALIVE: [(1, "d"), (2, "e")]})

    found = checked(predictions, shadow, 0)

    assert (found.exact, found.scored, found.killed) == (True, 5, 0)


def test_what_a_killed_worker_had_waiting_is_its_own_reason(predictions: LogLines, tmp_path: Path) -> None:
    shadow = log(tmp_path / "shadow", {KILLED: [(1, "a"), (2, "b")], ALIVE: [(1, "d"), (2, "e")]})

    assert (checked(predictions, shadow, 0).exact, checked(predictions, shadow, 0).killed) == (True, 1)


def test_what_could_not_be_written_before_the_kill_is_not_counted_twice(predictions: LogLines, tmp_path: Path) -> None:
    shadow = log(tmp_path / "shadow", {KILLED: [(1, "a"), (3, "c")], ALIVE: [(1, "d"), (2, "e")]})

    assert (checked(predictions, shadow, 1).exact, checked(predictions, shadow, 1).killed) == (True, 0)


@pytest.mark.parametrize("unwritten", [0, 2])
def test_a_drop_that_is_not_counted_exactly_is_found(predictions: LogLines, tmp_path: Path, unwritten: int) -> None:
    shadow = log(tmp_path / "shadow", {KILLED: [(1, "a"), (2, "b"), (3, "c")], ALIVE: [(1, "d")]})

    assert not checked(predictions, shadow, unwritten).exact


def test_records_of_nobody_and_second_ones_are_found(predictions: LogLines, tmp_path: Path) -> None:
    every = {KILLED: [(1, "a"), (2, "b"), (3, "c")], ALIVE: [(1, "d"), (2, "e"), (3, "e"), (4, "f")]}

    found = checked(predictions, log(tmp_path / "shadow", every), 0)

    assert (found.exact, found.twice, found.unsampled) == (False, 1, 1)
