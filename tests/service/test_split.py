"""Who is treated while a split runs, and the file that says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotReady
from service.roles import Role, Seat, move_roles, read_roles
from service.split import Split, arm_of, assigned, draw
from service.split_file import FILE, HISTORY, SplitFollower, SplitMoved, move_split, read_split, read_split_history

AT = datetime(2024, 3, 4, tzinfo=UTC)
CONTROL, TREATMENT = "a" * 64, "b" * 64
SPLIT = Split("1-2-20240304", "shadow", "customer", 0.25, CONTROL, TREATMENT, "label", "higher", 604800.0, AT)


def seated(models: Path) -> None:
    """Seat both models of the split."""
    seats: dict[Role, Seat | None] = {
        "primary": Seat("1", CONTROL, "packages/a"),
        "shadow": Seat("2", TREATMENT, "packages/b"),
    }
    move_roles(models, read_roles(models).revision, seats)


@given(st.text(), st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)), st.floats(0, 1), st.floats(0, 1))
def test_raising_the_share_keeps_everybody_who_is_treated(name: str, key: object, one: float, two: float) -> None:
    number = draw(name, key)

    small, large = (arm_of(number, share) for share in sorted((one, two)))

    assert (small, large) != ("treatment", "control")


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_the_share_of_keys_treated_is_the_share_asked_for(share: float) -> None:
    treated = sum(arm_of(draw("campaign", f"key {i}"), share) == "treatment" for i in range(20_000))

    assert treated == pytest.approx(20_000 * share, abs=4 * math.sqrt(20_000 * share * (1 - share)))


def test_two_splits_draw_independently() -> None:
    both = sum(arm_of(draw("one", i), 0.5) == arm_of(draw("two", i), 0.5) == "treatment" for i in range(20_000))

    assert both == pytest.approx(5000, abs=250)


def test_the_draw_is_the_same_in_every_process_and_version() -> None:
    assert draw("1-2-20240304", "customer 7") == 10953178466059917339


def test_a_key_keeps_its_arm_whatever_else_is_asked() -> None:
    first = assigned(SPLIT, "r1", {"customer": "c7", "amount": 1.0})
    second = assigned(SPLIT, "r2", {"customer": "c7", "amount": 2.0})

    assert first is not None
    assert second is not None
    assert (first.arm, first.unit) == (second.arm, second.unit)


def test_without_a_key_each_request_is_drawn_by_its_id() -> None:
    split = replace(SPLIT, key="")

    units = {found.unit for i in range(50) if (found := assigned(split, f"r{i}", {"customer": "c7"}))}

    assert len(units) == 50


def test_a_request_whose_key_is_null_is_no_part_of_the_split() -> None:
    assert assigned(SPLIT, "r1", {"customer": None}) is None


def test_a_split_survives_writing_and_reading(tmp_path: Path) -> None:
    move_split(tmp_path, 0, SPLIT, at=AT, reason="try it")

    state = read_split(tmp_path)

    assert (state.revision, state.split) == (1, replace(SPLIT, revision=1))


def test_of_two_who_move_at_once_one_is_told(tmp_path: Path) -> None:
    move_split(tmp_path, 0, SPLIT, at=AT)

    with pytest.raises(SplitMoved, match="at revision 1, not 0"):
        move_split(tmp_path, 0, replace(SPLIT, share=0.5), at=AT)

    state = read_split(tmp_path)
    assert state.split is not None
    assert state.split.share == 0.25


def test_history_keeps_who_when_and_why_and_outlives_a_torn_line(tmp_path: Path) -> None:
    move_split(tmp_path, 0, SPLIT, at=AT, reason="try it", checks=({"name": "step", "holds": True},))
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"revision": 2, "at"')
    move_split(tmp_path, 1, None, at=AT, reason="enough", forced=True)

    first, last = read_split_history(tmp_path)

    assert (first.reason, first.forced, first.checks) == ("try it", False, ({"name": "step", "holds": True},))
    assert (last.reason, last.forced, last.before, last.after) == ("enough", True, replace(SPLIT, revision=1), None)
    assert "@" in last.by


def test_revisions_go_on_when_the_file_was_removed(tmp_path: Path) -> None:
    move_split(tmp_path, 0, SPLIT, at=AT)
    (tmp_path / FILE).unlink()

    assert move_split(tmp_path, 0, SPLIT, at=AT).revision == 2


@pytest.mark.parametrize(
    "change",
    [{"share": 0}, {"share": 1.5}, {"share": math.nan}, {"share": "half"}, {"goal": "best"}, {"window_s": -1},
     {"name": ""}, {"slot": 3}, {"opened": "soon"}, {"stranger": 1}],
)  # fmt: skip
def test_a_file_that_is_no_split_is_refused_with_the_way_out(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / FILE).write_text(json.dumps({"revision": 1, "split": {**SPLIT.plain(), **change}}))

    with pytest.raises(NotReady, match=r"cannot be read .* remove it to end the split"):
        read_split(tmp_path)


def test_a_gateway_follows_the_file(tmp_path: Path) -> None:
    seated(tmp_path)
    follower = SplitFollower(tmp_path)
    follower.look()
    before = follower.current

    move_split(tmp_path, 0, SPLIT, at=AT)
    follower.look()

    assert (before, follower.current) == (None, replace(SPLIT, revision=1))


def test_a_split_ends_by_itself_when_a_role_moves(tmp_path: Path) -> None:
    seated(tmp_path)
    move_split(tmp_path, 0, SPLIT, at=AT)
    follower = SplitFollower(tmp_path)
    follower.look()

    move_roles(tmp_path, 1, {"primary": Seat("3", "c" * 64, "packages/c")})
    follower.look()

    assert follower.current is None


def test_a_torn_file_changes_nothing_and_a_removed_one_ends_the_split(tmp_path: Path) -> None:
    seated(tmp_path)
    move_split(tmp_path, 0, SPLIT, at=AT)
    follower = SplitFollower(tmp_path)
    follower.look()

    (tmp_path / FILE).write_text('{"revision": 2, "spl')
    follower.look()
    torn = follower.current
    (tmp_path / FILE).unlink()
    follower.look()

    assert (torn, follower.current) == (replace(SPLIT, revision=1), None)
