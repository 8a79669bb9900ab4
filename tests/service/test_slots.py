"""Several shadows at once, and the primary as its own understudy: nobody hurts anybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.fakes import FakeRunner
from service.idle import IdleSeats, idle_seats
from service.roles import SLOTS, NoSuchRole, Role, Seat, kind_of, move_roles, read_roles, shadow_slots
from tests.service.conftest import Stage

MakeStage = Callable[..., Stage]
SEAT = Seat("3", "d3", "packages/d3")


def broken(_: Any) -> Any:
    """Raise as a dead runner does."""
    msg = "gone"
    raise ConnectionError(msg)


def rehearsed(stage: Stage, count: int = 1, gap_s: float = 0.0) -> list[dict[str, Any]]:
    """Answer so many requests, let everybody finish, and return the shadow log."""

    async def run() -> None:
        for i in range(count):
            await stage.router.answer({**stage.request, "request_id": f"r{i}", "distance": 1000.0 + i})
            await asyncio.sleep(gap_s)
        for path in (stage.path, stage.path_2, stage.again):
            await path.close(2)

    asyncio.run(run())
    return stage.shadow_log.records


def test_slots_are_numbered_and_limited() -> None:
    assert [shadow_slots(n) for n in (1, 4)] == [("shadow",), SLOTS]
    for beyond in (0, 5):
        with pytest.raises(NoSuchRole, match=f"shadows={beyond} is out of range"):
            shadow_slots(beyond)
    assert [kind_of(role) for role in ("primary", "fallback", *SLOTS)] == ["primary", "fallback", *["shadow"] * 4]


def test_a_role_that_nobody_has_is_not_seated(tmp_path: Path) -> None:
    stranger: Any = "shadow_5"

    with pytest.raises(NoSuchRole, match="shadow_5"):
        move_roles(tmp_path, 0, {stranger: SEAT})

    assert read_roles(tmp_path).seats == {}


def test_every_slot_with_a_model_gets_the_same_vector(stage: MakeStage) -> None:
    first, second = FakeRunner(lambda _: 0.4, version="8"), FakeRunner(lambda _: 0.6, version="9")
    s = stage(shadow=first, shadow_2=second)

    records = rehearsed(s)

    assert first.rows == second.rows
    assert {r["shadow"]: (r["model_version"], r["prediction"]) for r in records} == {
        "shadow": ("8", 0.4),
        "shadow_2": ("9", 0.6),
    }
    (record,) = s.log.records
    assert (record["shadow_sampled"], record["shadows"]) == (True, ["shadow", "shadow_2"])


def test_a_slot_without_a_model_is_not_asked(stage: MakeStage) -> None:
    s = stage(shadow_2=FakeRunner(lambda _: 0.6))

    assert {r["shadow"] for r in rehearsed(s)} == {"shadow_2"}
    assert s.log.records[0]["shadows"] == ["shadow_2"]


@pytest.mark.parametrize("bad", [FakeRunner(broken), FakeRunner(lambda _: 0.5, delay_s=60)], ids=["dead", "hung"])
def test_one_shadow_in_trouble_costs_the_other_nothing(stage: MakeStage, bad: FakeRunner) -> None:
    s = stage(shadow=bad, shadow_2=FakeRunner(lambda _: 0.6))

    records = rehearsed(s, 12)

    ledgers = {slot: {r["outcome"] for r in records if r["shadow"] == slot} for slot in ("shadow", "shadow_2")}
    assert ledgers == {"shadow": {"dropped"}, "shadow_2": {"scored"}}
    assert len(records) == 24


def test_the_primary_is_asked_again_off_the_answers_way(stage: MakeStage) -> None:
    primary = FakeRunner(lambda _: 0.3, version="7")
    s = stage(primary=primary, noise=1.0)

    records = rehearsed(s, 3, 0.02)

    assert [(r["shadow"], r["outcome"], r["prediction"], r["model_version"]) for r in records] == [
        ("primary", "scored", 0.3, "7")
    ] * 3
    assert len(primary.rows) == 6
    assert [(r["shadow_sampled"], r["shadows"]) for r in s.log.records] == [(False, [])] * 3


def test_only_what_the_primary_answered_is_asked_again(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(broken), noise=1.0)

    assert rehearsed(s, 3) == []
    assert {r["role"] for r in s.log.records} == {"fallback"}


def test_a_second_answer_that_fails_does_not_count_against_the_primary(stage: MakeStage) -> None:
    seen: set[str] = set()

    def once(row: Any) -> float:
        if str(row) in seen:
            broken(row)
        seen.add(str(row))
        return 0.3

    s = stage(primary=FakeRunner(once), noise=1.0)

    records = rehearsed(s, 60, 0.002)

    assert {r["outcome"] for r in records} == {"dropped"}
    assert s.cast.primary.breaker.state == "closed"
    assert {r["role"] for r in s.log.records} == {"primary"}


def test_a_primary_in_trouble_is_asked_for_answers_only(stage: MakeStage) -> None:
    s = stage(noise=1.0)

    s.cast.primary.breaker.operate("forced_open")

    assert s.echo.runner is None


def test_a_seat_beyond_the_services_slots_is_told_of_with_the_fix() -> None:
    run = ["primary", "fallback", "shadow"]

    told = idle_seats({"primary": SEAT, "shadow_3": SEAT}, run)

    assert list(told) == ["shadow_3"]
    assert "shadows=1" in told["shadow_3"]
    assert "set UNDERSTUDY_SHADOWS=3" in told["shadow_3"]


def test_it_is_logged_once_and_again_when_another_model_takes_the_seat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seats: list[tuple[Role, Seat]] = [("shadow_2", SEAT), ("primary", SEAT), ("shadow_2", Seat("4", "d4", "p/d4"))]
    idle = IdleSeats(tmp_path, ["primary", "fallback", "shadow"])

    with caplog.at_level(logging.WARNING, logger="understudy"):
        idle.look()
        for revision, (role, seat) in enumerate(seats):
            move_roles(tmp_path, revision, {role: seat})
            idle.look()

    assert [r.message.partition(",")[0] for r in caplog.records] == [
        "version 3 is seated as shadow_2",
        "version 4 is seated as shadow_2",
    ]
