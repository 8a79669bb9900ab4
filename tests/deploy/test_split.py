"""Opening, raising and ending a split: one step at a time, only when nothing speaks against it, and on the record."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.split import SplitRefused, Wish, main, move
from monitoring.split_job import gather
from service.errors import NotReady
from service.roles import Role, Seat, move_roles, read_roles
from service.settings import Settings
from service.split_file import SplitMoved, move_split, read_split, read_split_history
from tests.monitoring.logs import contract
from tests.monitoring.splits import OPENED, SPLIT, Spoil, World, make_split, rate

OPEN = Wish(0.01, goal="lower")


def where(folder: Path, now: Any = OPENED, **more: Any) -> Settings:
    """Settings with both models seated, the clock standing at a moment."""
    models = folder / "models"
    if not read_roles(models).seats:
        seats: dict[Role, Seat | None] = {
            "primary": Seat("1", "a" * 64, "packages/a"),
            "shadow": Seat("2", "b" * 64, "packages/b"),
        }
        move_roles(models, 0, seats)
    return Settings(state_dir=folder, models_dir=models, clock=now.isoformat(), **more)


def running(folder: Path, **more: Any) -> tuple[World, Settings]:
    """A split that has treated 1 % of 3,000 requests for three days, and the settings of that moment."""
    world = make_split(folder, ((0.01, 3),), per_day=1000, **more)
    return world, where(folder, world.now + timedelta(hours=1))


def test_a_split_opens_at_one_percent_between_the_models_that_play(tmp_path: Path) -> None:
    state, checks = move(where(tmp_path), contract(), Wish(0.01, key="tailnum", goal="lower", reason="it steers"))

    split = state.split
    assert split is not None
    assert (split.share, split.slot, split.key, split.metric, split.goal) == (
        0.01,
        "shadow",
        "tailnum",
        "label",
        "lower",
    )
    assert (split.control, split.treatment, split.name) == ("a" * 64, "b" * 64, "1-2-20131001")
    assert [check.holds for check in checks] == [True]
    assert read_split_history(tmp_path / "models")[0].reason == "it steers"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (replace(OPEN, key="shoe_size"), "KEY=shoe_size is no field of the request; choose one of"),
        (replace(OPEN, slot="primary"), "SHADOW=primary: the treated are answered by a shadow slot"),
        (replace(OPEN, goal=None), "say which label is better, GOAL=higher or GOAL=lower"),
        (replace(OPEN, share=0.05), "from 0% to 5% is not one step of 1%, 5%, 25%, 50%"),
        (replace(OPEN, share=0.02), "from 0% to 2% is not one step"),
        (replace(OPEN, share=0.05, force=True), "--force needs --reason"),
        (replace(OPEN, share=0.0), "no split runs, so none can end"),
    ],
)
def test_what_cannot_open_is_refused_and_nothing_is_written(tmp_path: Path, wish: Wish, message: str) -> None:
    with pytest.raises(SplitRefused, match=re.escape(message)):
        move(where(tmp_path), contract(), wish)

    assert read_split(tmp_path / "models").revision == 0


def test_a_redacted_field_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(SplitRefused, match="KEY=tailnum is redacted"):
        move(where(tmp_path, redact="carrier, tailnum"), contract(), replace(OPEN, key="tailnum"))

    assert read_split(tmp_path / "models").revision == 0


def test_a_slot_nobody_plays_cannot_be_tried(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="nobody plays shadow_2"):
        move(where(tmp_path), contract(), replace(OPEN, slot="shadow_2"))


def test_the_next_step_is_taken_when_the_present_one_ran_without_alarm(tmp_path: Path) -> None:
    _, settings = running(tmp_path)

    state, checks = move(settings, contract(), Wish(0.05))

    assert state.split is not None
    assert (state.split.share, state.split.name, state.revision) == (0.05, SPLIT.name, 2)
    assert {check.name: check.holds for check in checks} == {
        "step": True, "hours": True, "requests": True, "alarms": True,
    }  # fmt: skip
    kept = read_split_history(tmp_path / "models")[-1]
    assert [check["name"] for check in kept.checks] == ["step", "hours", "requests", "alarms"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split_step_hours": 100}, "73.0 h at 1% (at least 100 h)"),
        ({"split_step_requests": 5000}, "3,000 requests at 1% (at least 5,000)"),
    ],
)
def test_a_step_too_early_is_refused(tmp_path: Path, more: dict[str, float], message: str) -> None:
    world, _ = running(tmp_path)

    with pytest.raises(SplitRefused, match=re.escape(message)):
        move(where(tmp_path, world.now + timedelta(hours=1), **more), contract(), Wish(0.05))

    assert read_split(tmp_path / "models").revision == 1


def test_a_skipped_step_is_refused_and_forced_on_the_record(tmp_path: Path) -> None:
    _, settings = running(tmp_path)

    with pytest.raises(SplitRefused, match="from 1% to 50% is not one step"):
        move(settings, contract(), Wish(0.5))
    state, _ = move(settings, contract(), Wish(0.5, force=True, reason="the season ends"))

    assert state.split is not None
    assert state.split.share == 0.5
    last = read_split_history(tmp_path / "models")[-1]
    assert (last.forced, last.reason) == (True, "the season ends")


def lose(rng: np.random.Generator, line: dict[str, Any]) -> dict[str, Any] | None:
    """A service that loses most of the treated requests."""
    return None if line["arm"] == "treatment" and rng.random() < 0.9 else line


def fail(rng: np.random.Generator, line: dict[str, Any]) -> dict[str, Any]:
    """A treated model that fails on a fifth of its requests."""
    if line["arm"] == "treatment" and rng.random() < 0.2:
        line |= {"role": "primary", "model_version": "1", "model_digest": "a" * 64}
    return line


@pytest.mark.parametrize(("spoil", "named"), [(lose, "Sample ratio mismatch"), (fail, "Failed answers")])
def test_an_alarm_stops_the_ramp(tmp_path: Path, spoil: Spoil, named: str) -> None:
    world = make_split(tmp_path, ((0.25, 3),), per_day=1000, spoil=spoil)

    with pytest.raises(SplitRefused, match=named):
        move(where(tmp_path, world.now), contract(), Wish(0.5))


def test_harm_stops_the_ramp(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.25, 4),), per_day=1000, outcome=rate(0.3, 0.3))

    with pytest.raises(SplitRefused, match="Evidence for harm"):
        move(where(tmp_path, world.now), contract(), Wish(0.5))


def test_without_its_file_the_harm_of_another_outcome_is_not_judged_by_labels(tmp_path: Path) -> None:
    world = make_split(
        tmp_path, ((0.25, 4),), per_day=1000, outcome=rate(0.3, 0.3), split=replace(SPLIT, metric="revenue")
    )

    state, checks = move(where(tmp_path, world.now), contract(), Wish(0.5))

    assert state.revision == 2
    assert "harm not looked at: no FILE= of revenue" in checks[-1].message


def test_the_share_may_always_be_lowered_or_ended(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.5, 1),), per_day=50, spoil=lose)
    settings = where(tmp_path, world.now)

    lower, _ = move(settings, contract(), Wish(0.05))
    ended, _ = move(settings, contract(), Wish(0.0, reason="enough"))

    assert lower.split is not None
    assert (lower.split.share, ended.split) == (0.05, None)


@pytest.mark.parametrize(
    "change",
    [{"key": "route"}, {"metric": "revenue"}, {"goal": "higher"}, {"window": timedelta(days=3)}, {"slot": "shadow_2"}],
)  # fmt: skip
def test_what_was_declared_cannot_change_while_the_split_runs(tmp_path: Path, change: dict[str, Any]) -> None:
    _, settings = running(tmp_path)

    with pytest.raises(SplitRefused, match="differs from the running split's"):
        move(settings, contract(), Wish(0.05, **change))


def test_after_the_roles_moved_another_split_begins_at_one_percent(tmp_path: Path) -> None:
    _, settings = running(tmp_path)
    move_roles(tmp_path / "models", 1, {"shadow": Seat("3", "c" * 64, "packages/c")})

    with pytest.raises(SplitRefused, match="from 0% to 5% is not one step"):
        move(settings, contract(), Wish(0.05, goal="lower"))
    state, checks = move(settings, contract(), OPEN)

    assert state.split is not None
    assert (state.split.name, state.split.treatment) == ("1-3-20131004", "c" * 64)
    assert "has ended: shadow was bbbbbbbbbbbb and is now version 3" in checks[0].message


def test_names_are_never_used_twice(tmp_path: Path) -> None:
    settings = where(tmp_path)
    names = []
    for _ in range(3):
        state, _ = move(settings, contract(), OPEN)
        assert state.split is not None
        names.append(state.split.name)
        move(settings, contract(), Wish(0.0))

    assert names == ["1-2-20131001", "1-2-20131001-2", "1-2-20131001-3"]


def test_who_moves_it_while_somebody_checks_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings = running(tmp_path)

    def slowly(*args: Any, **more: Any) -> Any:
        move_split(tmp_path / "models", 1, None, at=OPENED, reason="stop")
        return gather(*args, **more)

    monkeypatch.setattr("deploy.split.gather", slowly)

    with pytest.raises(SplitMoved, match="at revision 2, not 1"):
        move(settings, contract(), Wish(0.05))

    assert read_split(tmp_path / "models").split is None


def test_the_command_says_what_it_checked_and_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, settings = running(tmp_path)
    monkeypatch.setattr("deploy.split.settings", lambda: settings)

    code = main(["--share", "5"])

    out = capsys.readouterr().out.splitlines()
    assert (code, json.loads(out[-1])["share"]) == (0, 0.05)
    assert out[-2] == "==> split 1-2: 5% of every tailnum to shadow, within a second. `make split-verdict`"
    assert "  ok     3,000 requests at 1% (at least 1,000)" in out


@pytest.mark.parametrize(
    ("share", "said"), [("120", "SHARE=120 is no percentage"), ("nan", "SHARE=nan is no percentage")]
)
def test_a_share_that_is_none_is_refused(share: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--share", share]) == 1

    assert said in capsys.readouterr().err
