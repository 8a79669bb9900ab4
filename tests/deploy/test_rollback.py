"""Rollback: the primary from before the last promotion, whatever else is down, and never back and forth unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import rollback as rollback_module
from deploy.moves import MoveRefused, mirror
from deploy.promote import Wish, promote
from deploy.rollback import RolledBack, main, rollback
from service.errors import PackageError
from service.roles import RolesMoved, hold_roles, move_roles, read_history, read_roles
from service.settings import Settings
from tests.bundle import seat_model
from tests.deploy.promotions import (
    AT,
    aliases,
    copied,
    killed_at_every_step,
    known,
    make_bento,
    make_registry,
    seat,
    seated,
    told_by,
    verdict_of,
    write_verdict,
)
from tests.deploy.test_promote import closed_port, silent


def promoted(folder: Path, **more: Any) -> Settings:
    """A bundle whose shadow (version 3) was promoted over version 1 at revision 4."""
    settings = seated(folder, **more)
    write_verdict(settings, verdict_of(settings))
    promote(settings, known(), Wish(), silent)
    return settings


def back(settings: Settings, say: Callable[[str], None] = silent, **more: Any) -> RolledBack:
    """Roll back in this process."""
    return rollback(settings, known(), say, **more)


def versions(settings: Settings) -> dict[str, str]:
    """Who plays, by version."""
    return {str(role): one.version for role, one in read_roles(settings.models_dir).seats.items()}


def test_everything_is_as_before_the_promotion_and_the_history_says_why(tmp_path: Path) -> None:
    settings = promoted(tmp_path)

    done = back(settings, reason="complaints")

    move = read_history(settings.models_dir)[-1]
    assert versions(settings) == {"primary": "1", "fallback": "2", "shadow": "3"}
    assert (move.revision, move.kind, move.reason, move.verdict, move.at) == (5, "rollback", "complaints", None, AT)
    assert (done.restored.version, done.removed.version, done.slot) == ("1", "3", "shadow")


def test_a_second_rollback_is_refused_and_says_what_can_be_meant(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    back(settings)

    with pytest.raises(MoveRefused, match=r"taken back already at revision 5 \(rollback.*TO=5 is version 1, TO=4 is v"):
        back(settings)

    assert versions(settings)["primary"] == "1"


def test_a_promotion_that_was_taken_back_is_done_again_by_its_revision(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    back(settings)

    with pytest.raises(MoveRefused, match="TO=4 needs REASON="):
        back(settings, to=4)
    back(settings, to=4, reason="it was the weather feed")

    assert versions(settings) == {"primary": "3", "fallback": "2", "shadow": "1"}
    assert read_history(settings.models_dir)[-1].kind == "rollback"
    with pytest.raises(MoveRefused, match="taken back already at revision 6"):
        back(settings)


def test_one_can_go_further_back_than_one_promotion(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    seat_model(settings, "shadow", seed=4)
    promote(settings, known(), Wish(force=True, reason="hurry"), silent)
    back(settings)

    back(settings, to=1, reason="both are bad")

    assert versions(settings) == {"primary": "1", "fallback": "2", "shadow": "4"}


@pytest.mark.parametrize("to", [0, 9])
def test_a_revision_nobody_knows_is_refused(to: int, tmp_path: Path) -> None:
    with pytest.raises(MoveRefused, match=f"nobody is known to have been primary at revision {to}; name the primary"):
        back(promoted(tmp_path), to=to, reason="why not")


def test_the_primary_that_plays_is_not_restored(tmp_path: Path) -> None:
    with pytest.raises(MoveRefused, match="the primary of revision 4 plays already: version 3"):
        back(promoted(tmp_path), to=4, reason="why not")


def test_without_a_promotion_there_is_nothing_to_take_back(tmp_path: Path) -> None:
    with pytest.raises(MoveRefused, match="seated by training at revision 1"):
        back(seated(tmp_path))


def test_a_primary_seated_by_training_since_is_not_taken_back(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    seat_model(settings, "primary", seed=5)

    with pytest.raises(MoveRefused, match=r"seated by training at revision 5 .*TO=4 is version 3, TO=1 is version 1"):
        back(settings)


def test_a_newer_shadow_keeps_its_place(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    seat_model(settings, "shadow", seed=5)

    done = back(settings)

    assert versions(settings) == {"primary": "1", "fallback": "2", "shadow": "5"}
    assert done.slot is None


def test_a_model_that_cannot_play_any_more_is_not_restored(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    old = read_history(settings.models_dir)[-1].before["primary"]
    assert old is not None
    shutil.rmtree(settings.models_dir / old.package)

    with pytest.raises(PackageError, match=r"manifest\.json cannot be read"):
        back(settings)

    assert versions(settings)["primary"] == "3"


def test_what_was_decided_on_other_roles_is_not_done(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    move_roles(settings.models_dir, 4, {"shadow": seat(settings, "fallback")}, "meanwhile")

    with pytest.raises(RolesMoved, match="revision 5, not 4"):
        back(settings, expected=4)


def test_a_model_that_was_taken_back_by_itself_needs_force_for_a_while(tmp_path: Path) -> None:
    settings = promoted(tmp_path)
    back(settings, kind="revert", reason="watch")

    with pytest.raises(
        MoveRefused, match=r"version 3 .* was reverted at 2013-10-15 00:00, 0\.0 days ago \(limit 7 days"
    ):
        back(settings, to=4, reason="sure")
    back(settings, to=4, reason="sure", force=True)

    assert versions(settings)["primary"] == "3"


def test_history_lines_from_before_there_were_kinds_are_trainings(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    path = settings.models_dir / "roles.history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in line.items() if k not in ("kind", "verdict")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))

    assert [(m.kind, m.verdict, m.done) for m in read_history(settings.models_dir)] == [("train", None, True)] * 3


def test_a_rollback_works_while_mlflow_is_down_and_the_next_command_brings_its_aliases_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = seated(tmp_path)
    make_registry(settings)
    write_verdict(settings, verdict_of(settings))
    promote(settings, known(), Wish(), silent)
    mirror(settings, silent)
    assert aliases(settings) == {"primary": "3", "fallback": "2"}
    away = settings.model_copy(update={"tracking_uri": f"http://127.0.0.1:{closed_port()}"})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(rollback_module, "settings", lambda: away)

    code = main(["--reason", "it is bad"])

    said = capsys.readouterr().out
    assert (code, json.loads(said.splitlines()[-1])["aliases"]) == (0, "behind")
    assert "the aliases stay behind: MLflow at http://127.0.0.1" in said
    assert versions(settings)["primary"] == "1"
    assert mirror(settings, silent).aliases == "current"
    assert aliases(settings) == {"primary": "1", "fallback": "2", "shadow": "3"}


def test_of_two_who_roll_back_at_once_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = promoted(tmp_path)
    monkeypatch.setattr(rollback_module, "settings", lambda: settings)
    real, raced = hold_roles, list[int]()

    def late(*args: Any) -> Any:
        if not raced:
            raced.append(1)
            back(settings)
        return real(*args)

    monkeypatch.setattr(rollback_module, "hold_roles", late)

    assert main([]) == 1

    assert "rollback: roles are at revision 5, not 4: someone moved them" in capsys.readouterr().err
    assert [m.kind for m in read_history(settings.models_dir)].count("rollback") == 1


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_everything_before_or_after_once_the_next_command_ran(tmp_path: Path) -> None:
    template = tmp_path / "template"
    settings = promoted(template)
    make_registry(settings)
    make_bento(template / "bentoml", "b", settings.models_dir)
    before = told_by(*copied(template, tmp_path / "looked"))

    found = killed_at_every_step(template, tmp_path / "killed", "deploy.rollback")

    after = {
        "roles": {"primary": "1", "fallback": "2", "shadow": "3"},
        "aliases": {"primary": "1", "fallback": "2", "shadow": "3"},
        "bento": "outdated",
        "last": (5, "rollback"),
    }
    assert found == [{**before, "bento": "current"}] * 3 + [after] * (len(found) - 3)
    assert len(found) == 8
