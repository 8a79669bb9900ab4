"""Retraining: what is trained and where it sits, what is refused, and what a kill in between leaves."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from deploy import retrain
from monitoring.retraining import FILE, folder
from monitoring.retraining_facts import read_decisions
from service.errors import DataError
from service.progress import Say
from service.roles import Role, read_roles
from service.settings import Settings
from tests.bundle import seat_model, settings_in
from training.gate import GateRefused

NOW = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_in(tmp_path, retrain_max_age_days=30.0)
    seat_model(settings, "primary", seed=1)
    # The test's packages say nothing of when they were trained.
    monkeypatch.setattr("monitoring.retraining_facts._trained", lambda *_: NOW - timedelta(days=40))
    return settings


def trainer(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    return {"roles": {slot: seat_model(own, cast("Role", slot), seed=5).version}}


def refusing(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    raise GateRefused("the gate refuses: AUC 0.5 (at least 0.7)", ())


def failing(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    raise DataError("the registry is away")


def killed(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    raise KeyboardInterrupt


def never(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    raise AssertionError("nothing was to be trained")


def silent(_: str) -> None:
    """Say nothing."""


def steps(own: Settings) -> list[str]:
    return [str(line["decision"]) for line in read_decisions(folder(own.state_dir) / FILE)[0]]


def test_what_is_due_is_trained_into_a_free_slot_and_nothing_is_promoted(own: Settings) -> None:
    before = read_roles(own.models_dir).seats["primary"]

    done = retrain.retrain(own, NOW, trainer, silent)

    seats = read_roles(own.models_dir).seats
    assert (done.did, done.slot, done.version) == ("trained", "shadow", seats["shadow"].version)
    assert seats["primary"] == before
    assert steps(own) == ["retrain", "started", "trained"]


def test_after_a_training_the_cool_down_holds(own: Settings) -> None:
    retrain.retrain(own, NOW, trainer, silent)

    assert retrain.retrain(own, NOW + timedelta(days=1), never, silent).did == "nothing"


def test_a_running_campaign_is_left_alone(own: Settings) -> None:
    seat_model(own, "shadow", seed=3)
    before = read_roles(own.models_dir)

    done = retrain.retrain(own, NOW, never, silent)

    assert done.did == "no slot"
    assert read_roles(own.models_dir) == before


def test_another_slot_is_taken_when_there_is_one(own: Settings) -> None:
    seat_model(own, "shadow", seed=3)

    done = retrain.retrain(own.model_copy(update={"shadows": 2}), NOW, trainer, silent)

    assert done.slot == "shadow_2"


def test_a_refusal_is_on_record_and_seats_nothing(own: Settings) -> None:
    done = retrain.retrain(own, NOW, refusing, silent)

    assert (done.did, done.why) == ("refused", "the gate refuses: AUC 0.5 (at least 0.7)")
    assert "shadow" not in read_roles(own.models_dir).seats
    assert steps(own) == ["retrain", "started", "refused"]
    assert retrain.retrain(own, NOW + timedelta(days=1), never, silent).did == "nothing"


def test_a_training_that_failed_is_tried_again_without_a_cool_down(own: Settings) -> None:
    failed = retrain.retrain(own, NOW, failing, silent)

    done = retrain.retrain(own, NOW + timedelta(hours=1), trainer, silent)

    assert (failed.did, done.did) == ("failed", "trained")


def test_a_training_that_was_killed_is_told_of_and_done_again(own: Settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrain.retrain(own, NOW, killed, silent)
    said: list[str] = []

    done = retrain.retrain(own, NOW + timedelta(hours=1), trainer, said.append)

    assert done.did == "trained"
    assert said[0] == "the training of 2024-05-01 00:00 was cut short; deciding anew"
    assert steps(own) == ["retrain", "started", "interrupted", "started", "trained"]


def test_a_kill_after_the_model_was_seated_does_not_train_twice(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
        trainer(own, at, slot, say)
        raise KeyboardInterrupt

    monkeypatch.setattr(retrain, "_as_of", lambda *_: NOW)
    with pytest.raises(KeyboardInterrupt):
        retrain.retrain(own, NOW, late, silent)

    done = retrain.retrain(own, NOW + timedelta(hours=1), never, silent)

    assert done.did == "nothing"
    assert steps(own)[:3] == ["retrain", "started", "trained"]


def test_of_two_at_once_one_wins(own: Settings) -> None:
    folder(own.state_dir).mkdir(parents=True)
    with (folder(own.state_dir) / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(retrain.RetrainingRuns, match="another retraining"):
            retrain.retrain(own, NOW, never, silent)

    assert steps(own) == []


@pytest.mark.parametrize(("train", "code"), [(trainer, 0), (refusing, 1), (failing, 1)])
def test_the_exit_code_says_what_came_of_it(
    own: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    train: retrain.Trainer,
    code: int,
) -> None:
    monkeypatch.setattr(retrain, "settings", lambda: own.model_copy(update={"clock": NOW.isoformat()}))
    monkeypatch.setattr(retrain, "_train", train)

    assert retrain.main([]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["decision"] == "retrain"
