"""Several shadows in one log, each compared by itself; and the primary's second answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitoring.compare import compare
from monitoring.compare_job import open_logs
from monitoring.evidence import Version
from monitoring.pairing import FIRST
from tests.monitoring.logs import PRIMARY, SHADOW, Logs, campaign, contract, drop

SECOND = ("3", "c" * 64)


def offered(logs: Logs, *slots: str) -> Logs:
    """Name the slots every prediction was offered to, and the lines there are as the first one's."""
    for line in logs.predictions:
        line["shadows"] = list(slots)
    for line in logs.shadow:
        line["shadow"] = "shadow"
    return logs


def second(logs: Logs, **changes: Any) -> list[dict[str, Any]]:
    """Add the lines of another shadow beside those there are, and return them."""
    model = {"model_version": SECOND[0], "model_digest": SECOND[1]}
    lines = [{**line, "shadow": "shadow_2", **model, **changes} for line in logs.shadow]
    logs.shadow.extend(lines)
    return lines


def again(logs: Logs, every: int, shift: float = 0.0) -> None:
    """Ask the primary of every so many predictions once more."""
    model = {"model_version": PRIMARY[0], "model_digest": PRIMARY[1], "reason": None, "latency_ms": 2.0, "batch": 1}
    logs.shadow.extend(
        {
            "request_id": p["request_id"], "at": p["at"], "shadow": "primary", "outcome": "scored",
            "prediction": p["prediction"] + shift, **model,
        }
        for p in logs.predictions[::every]
    )  # fmt: skip


def test_each_slot_is_joined_with_its_own_lines(tmp_path: Path) -> None:
    logs = offered(campaign(60), "shadow", "shadow_2")
    for line in second(logs)[:7]:
        drop(line, "timeout")
    for line in logs.predictions[:10]:
        line["shadows"] = ["shadow_2"]
    logs.shadow = logs.shadow[10:]

    opened = open_logs(logs.write(tmp_path), contract())
    first, other = (compare(opened.of(slot), contract()) for slot in opened.slots)

    assert opened.slots == ["shadow", "shadow_2"]
    assert (first.slot, first.shadow, other.slot, other.shadow) == (
        "shadow", Version(*SHADOW), "shadow_2", Version(*SECOND)
    )  # fmt: skip
    assert (first.ledger.sampled, first.ledger.scored, first.ledger.dropped) == (50, 50, {})
    assert (other.ledger.sampled, other.ledger.scored, other.ledger.dropped) == (60, 53, {"timeout": 7})
    assert first.campaign != other.campaign
    assert all(count == 0 for count in (first.notes.duplicate_shadow, first.notes.unasked_shadow))


def test_logs_from_before_there_were_slots_are_the_first_ones(tmp_path: Path) -> None:
    opened = open_logs(campaign(30).write(tmp_path), contract())

    assert opened.slots == ["shadow"]
    assert compare(opened.of("shadow"), contract()).ledger.scored == 30
    assert int(opened.of("shadow_2").frame["shadow_sampled"].sum()) == 0


def test_old_and_new_logs_are_one_campaign(tmp_path: Path) -> None:
    logs = campaign(40)
    for line in logs.predictions[20:]:
        line["shadows"] = ["shadow"]
    for line in logs.shadow[20:]:
        line["shadow"] = "shadow"

    found = compare(open_logs(logs.write(tmp_path), contract()).of(FIRST), contract())

    assert (found.ledger.sampled, found.ledger.scored) == (40, 40)


@pytest.mark.parametrize(("shift", "same"), [(0.0, 10), (1e-6, 0)])
def test_what_the_primary_said_again_is_the_noise_floor_and_nobodys_loss(
    tmp_path: Path, shift: float, same: int
) -> None:
    logs = offered(campaign(100), "shadow")
    again(logs, 10, shift)

    opened = open_logs(logs.write(tmp_path), contract())
    found = compare(opened.of("shadow"), contract())

    assert opened.slots == ["shadow"]
    assert found.noise is not None
    assert (found.noise.rows, found.noise.same) == (10, same)
    assert (found.ledger.sampled, found.ledger.scored, found.ledger.lost) == (100, 100, 0)
    assert (found.notes.duplicate_shadow, found.notes.unasked_shadow) == (0, 0)


def test_a_second_answer_of_another_model_says_nothing(tmp_path: Path) -> None:
    logs = offered(campaign(20), "shadow")
    again(logs, 2)
    for line in logs.shadow[-10:]:
        line["model_digest"] = "e" * 64

    found = compare(open_logs(logs.write(tmp_path), contract()).of(FIRST), contract())

    assert found.noise is None
