"""The ledger adds up, whatever became of the logs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.ledger import Rehearsed, ledger
from service.prediction_log import SegmentLog


def predict(folder: Path, count: int, *, lost: frozenset[int] = frozenset(), start: int = 0) -> None:
    """One writer's predictions, some of which could not be written."""
    log = SegmentLog(folder / "predictions", 300)
    for i in range(start, start + count):
        log.append({"request_id": f"r{i}", "shadow_sampled": i % 2 == 0, "x": 2**70 if i in lost else i})
    log.close()


def rehearse(folder: Path, outcomes: dict[int, str | None]) -> None:
    """Shadow records: a reason, or None for scored."""
    log = SegmentLog(folder / "shadow", 300)
    for i, reason in outcomes.items():
        outcome = "dropped" if reason else "scored"
        log.append({"request_id": f"r{i}", "outcome": outcome, "reason": reason})
    log.close()


def test_nothing_is_nothing(tmp_path: Path) -> None:
    found = ledger(tmp_path)

    assert (found.predictions.served, found.sampled, found.exact) == (0, 0, True)


def test_served_is_logged_plus_dropped_over_all_writers(tmp_path: Path) -> None:
    predict(tmp_path, 10, lost=frozenset({3, 9}))
    predict(tmp_path, 5, start=10)

    kept = ledger(tmp_path).predictions

    assert (kept.writers, kept.served, kept.logged, kept.dropped, kept.damaged) == (2, 15, 13, 2, 0)


def test_sampled_is_scored_dropped_or_unrecorded(tmp_path: Path) -> None:
    predict(tmp_path, 10)
    rehearse(tmp_path, {0: None, 2: "timeout", 4: "timeout", 6: "queue_full"})

    found = ledger(tmp_path)

    assert (found.sampled, found.scored, found.unrecorded) == (5, 1, 1)
    assert found.shadow_dropped == {"queue_full": 1, "timeout": 2}
    assert found.exact


def test_a_shadow_record_of_nobody_is_not_accounted_for(tmp_path: Path) -> None:
    predict(tmp_path, 2)
    rehearse(tmp_path, {0: None, 7: None})

    found = ledger(tmp_path)

    assert (found.strangers, found.exact) == (1, False)


def write(folder: Path, log: str, *records: dict[str, Any]) -> None:
    """One writer's records."""
    segments = SegmentLog(folder / log, 10**6)
    for record in records:
        segments.append(record)
    segments.close()


def test_every_slot_has_its_own_account(tmp_path: Path) -> None:
    both, one = ["shadow", "shadow_2"], ["shadow_2"]
    offers = {"a": both, "b": both, "c": one, "d": []}
    write(
        tmp_path,
        "predictions",
        *({"request_id": r, "shadow_sampled": bool(s), "shadows": s} for r, s in offers.items()),
    )
    told = [("a", "shadow", None), ("a", "shadow_2", "timeout"), ("b", "shadow_2", None), ("c", "shadow_2", None)]
    write(
        tmp_path,
        "shadow",
        *(
            {"request_id": r, "shadow": s, "outcome": "dropped" if why else "scored", "reason": why}
            for r, s, why in told
        ),
    )

    found = ledger(tmp_path)

    assert found.slots == {
        "shadow": Rehearsed(sampled=2, scored=1, dropped={}, unrecorded=1),
        "shadow_2": Rehearsed(sampled=3, scored=2, dropped={"timeout": 1}, unrecorded=0),
    }
    assert (found.sampled, found.scored, found.unrecorded, found.exact) == (5, 3, 1, True)
    assert found.shadow_dropped == {"timeout": 1}


def test_the_primarys_second_answers_are_in_no_slots_account(tmp_path: Path) -> None:
    write(tmp_path, "predictions", {"request_id": "a", "shadow_sampled": True, "shadows": ["shadow"]})
    write(
        tmp_path,
        "shadow",
        *({"request_id": "a", "shadow": slot, "outcome": "scored", "reason": None} for slot in ("primary", "shadow")),
    )

    found = ledger(tmp_path)

    assert (found.sampled, found.scored, found.again, found.exact) == (1, 1, 1, True)


@pytest.mark.parametrize("slot", ["primary", "shadow_2"])
def test_a_slots_record_of_what_it_was_not_offered_is_a_strangers(tmp_path: Path, slot: str) -> None:
    write(tmp_path, "predictions", {"request_id": "a", "shadow_sampled": True, "shadows": ["shadow"]})
    asked = "a" if slot == "shadow_2" else "nobody"
    write(tmp_path, "shadow", {"request_id": asked, "shadow": slot, "outcome": "scored", "reason": None})

    found = ledger(tmp_path)

    assert (found.strangers, found.exact) == (1, False)


def test_a_request_told_of_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, "predictions", *[{"request_id": "a", "shadow_sampled": True, "shadows": ["shadow"]}] * 2)
    write(
        tmp_path,
        "shadow",
        {"request_id": "a", "shadow": "shadow", "outcome": "dropped", "reason": "timeout"},
        {"request_id": "a", "shadow": "shadow", "outcome": "scored", "reason": None},
    )

    found = ledger(tmp_path)

    assert found.slots == {"shadow": Rehearsed(sampled=1, scored=1, dropped={}, unrecorded=0)}


def test_lines_of_a_version_that_did_not_number_them_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    line = json.dumps({"request_id": "a", "shadow_sampled": False})
    (tmp_path / "predictions" / "20250101T000000-1-abcdef-00000.jsonl").write_text(line + "\n")

    kept = ledger(tmp_path).predictions

    assert (kept.unnumbered, kept.served, kept.logged) == (1, 0, 0)


@given(cut=st.integers(0, 600), garbage=st.binary(max_size=40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_segment_cut_or_soiled_anywhere_still_adds_up(cut: int, garbage: bytes, data: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = SegmentLog(folder / "predictions", 10**6)
        for i in range(10):
            log.append({"request_id": f"r{i}", "shadow_sampled": False})
        log.close()
        (path,) = (folder / "predictions").glob("*.jsonl")
        content = path.read_bytes()
        at = min(cut, len(content))
        path.write_bytes(content[:at] + garbage.replace(b"\n", b" ") if data.draw(st.booleans()) else content[:at])
        whole = content[:at].count(b"\n")

        kept = ledger(folder).predictions

        assert kept.served == kept.logged + kept.dropped
        assert whole <= kept.logged <= whole + 1
