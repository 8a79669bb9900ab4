"""How a watch ends: a model is taken back once, never to a worse one, whoever moves the roles meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy import watch as watch_module
from deploy.moves import MoveRefused
from deploy.promote import Wish, promote
from deploy.rollback import rollback
from deploy.watch import BREACH, look
from deploy.watch_checks import judge
from deploy.watch_open import open_newest
from deploy.watch_record import read_watch
from service.errors import NotReady
from service.roles import read_history, read_roles
from service.settings import ROOT, Settings
from tests.bundle import seat_model
from tests.deploy.promotions import (
    aliases,
    command,
    copied,
    environment_of,
    killed_at_every_step,
    known,
    make_bento,
    make_registry,
    seat,
    seated,
    verdict_of,
    write_verdict,
)
from tests.deploy.watched import (
    DAY,
    PROMOTED,
    later,
    live,
    looked,
    outcomes,
    promotion,
    reverts,
    silent,
    times_out,
)


def test_a_model_is_taken_back_once_and_stays_away_for_a_while(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=times_out)
    looked(settings)
    later(settings, 1)

    watch, code = look(settings, known(), silent, DAY)
    assert (watch, code, reverts(settings)) == (None, 0, 1)
    reverted = read_history(settings.models_dir)[-1].at
    now = reverted + timedelta(hours=1)
    write_verdict(settings, verdict_of(settings, decided_at=now, expires_at=now + timedelta(days=7)))
    with pytest.raises(MoveRefused, match=r"version 3 .* was reverted .*limit 7 days, promote_cooldown_days"):
        promote(settings, known(), Wish(), silent)
    again = verdict_of(settings, opened=reverted + timedelta(minutes=1), decided_at=now, expires_at=now + DAY)
    write_verdict(settings, again)
    promote(settings, known(), Wish(), silent)

    assert seat(settings, "primary").version == "3"


def test_the_cooldown_ends(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=times_out)
    looked(settings)
    later(settings, 24 * 7)
    now = PROMOTED + timedelta(days=8)

    write_verdict(settings, verdict_of(settings, decided_at=now, expires_at=now + DAY))

    assert promote(settings, known(), Wish(), silent).kind == "promote"


def test_no_way_back_to_a_model_that_was_itself_taken_back(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    rollback(settings, known(), silent, kind="revert", reason="watch")
    promote(settings, known(), Wish(force=True, reason="we know"), silent)
    seat_model(settings, "shadow", seed=4)
    promote(settings, known(), Wish(force=True, reason="we know"), silent)
    live(settings, 1, spoil=times_out)
    said: list[str] = []

    watch, code = looked(settings, said)

    assert (watch.status, code, reverts(settings)) == ("open", BREACH, 1)
    assert seat(settings, "primary").version == "4"
    assert "NOT taken back, version 3" in said[-1]
    assert "was itself taken back at" in said[-1]


def test_no_way_back_to_a_model_whose_package_is_gone(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=times_out)
    old = read_history(settings.models_dir)[-1].before["primary"]
    assert old is not None
    shutil.rmtree(settings.models_dir / old.package)
    said: list[str] = []

    watch, code = looked(settings, said)

    assert (watch.status, code, reverts(settings)) == ("open", BREACH, 0)
    assert "NOT taken back, the model to go back to cannot play" in said[-1]


def test_a_breach_seen_only_after_the_watch_is_told_of_and_changes_nothing(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 7, spoil=times_out)
    later(settings, 48)

    watch, code = looked(settings)

    assert (watch.status, code, reverts(settings)) == ("breached", BREACH, 0)
    assert watch.why.endswith("(the watch is over)")
    assert looked(settings)[1] == 0


@pytest.mark.parametrize(
    ("by", "status"), [("rollback", "rolled_back"), ("promote", "superseded"), ("train", "superseded")]
)
def test_a_watch_ends_with_its_promotion(by: str, status: str, tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    looked(settings)
    if by == "rollback":
        rollback(settings, known(), silent, reason="complaints")
    elif by == "train":
        seat_model(settings, "primary", seed=6)
    else:
        seat_model(settings, "shadow", seed=6)
        promote(settings, known(), Wish(force=True, reason="hurry"), silent)

    look(settings, known(), silent, DAY)

    ended = read_watch(settings.state_dir / "watch/4.json")
    assert (ended.status, ended.why.partition(" ")[0]) == (status, {"promote": "force"}.get(by, by))


def test_without_a_promotion_there_is_nothing_to_watch(tmp_path: Path) -> None:
    settings = seated(tmp_path)

    assert look(settings, known(), silent, DAY) == (None, 0)
    assert open_newest(settings) == ""


def test_a_forced_promotion_of_a_model_nobody_rehearsed_is_watched_by_what_is_known(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    promote(settings, known(), Wish(force=True, reason="hurry"), silent)

    watch, code = looked(settings)

    assert (watch.expected.rehearsed, watch.expected.scores, code) == (0, None, 0)
    assert set(outcomes(watch).values()) == {"no_data"}


def test_failures_of_the_model_before_the_last_one_are_not_the_replaced_models(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=times_out)
    looked(settings)
    seat_model(settings, "shadow", seed=9)
    later(settings, 1)
    promote(settings, known(), Wish(force=True, reason="hurry"), silent)

    watch, _ = looked(settings)

    assert (watch.revision, watch.replaced.version, watch.expected.replaced_failures) == (7, "1", None)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    looked(settings)
    (settings.state_dir / "watch/4.json").write_text('{"revision": 4')

    with pytest.raises(NotReady, match=r"watch/4\.json cannot be read .*move it away"):
        looked(settings)


def test_what_was_expected_does_not_change_while_the_watch_lasts(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    first, _ = looked(settings)
    live(settings, 1)
    shutil.rmtree(settings.log_dir / "shadow")

    second, _ = looked(settings)

    assert second.expected == first.expected
    assert first.expected.rehearsed == 8 * 240


def test_who_moves_the_roles_while_somebody_judges_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=times_out)
    real = judge

    def slowly(*args: Any) -> Any:
        seat_model(settings, "shadow", seed=8)
        return real(*args)

    monkeypatch.setattr(watch_module, "judge", slowly)
    said: list[str] = []

    watch, code = looked(settings, said)

    assert (watch.status, code, reverts(settings)) == ("open", BREACH, 0)
    assert "somebody else moved the roles meanwhile" in said[-1]
    monkeypatch.undo()
    assert looked(settings)[0].status == "reverted"
    assert seat(settings, "shadow").version == "8"


@pytest.fixture(scope="module")
def breaching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promoted model that times out, with registry and Bento."""
    folder = tmp_path_factory.mktemp("breaching")
    settings = promotion(folder)
    live(settings, 1, spoil=times_out)
    make_registry(settings)
    make_bento(folder / "bentoml", "b", settings.models_dir)
    return folder


@pytest.mark.slow
def test_killed_anywhere_while_it_takes_a_model_back_it_does_so_once(breaching: Path, tmp_path: Path) -> None:
    found = killed_at_every_step(breaching, tmp_path / "killed", "deploy.watch", ends=BREACH)

    ends = [one["last"] for one in found]
    assert ends == [(4, "promote")] * ends.count((4, "promote")) + [(5, "revert")] * ends.count((5, "revert"))
    assert 4 <= ends.count((4, "promote")) < len(ends) - 3
    for n in range(len(found)):
        folder = tmp_path / f"killed/{n}"
        settings = Settings(state_dir=folder / "state", models_dir=folder / "models", clock=str(folder / "clock"))
        look(settings, known(), silent, DAY)
        assert reverts(settings) == 1
        assert read_watch(settings.state_dir / "watch/4.json").status == "reverted"
        assert {str(r): s.version for r, s in read_roles(settings.models_dir).seats.items()} == {
            "primary": "1", "fallback": "2", "shadow": "3",
        }  # fmt: skip
    assert aliases(settings) == {"primary": "1", "fallback": "2", "shadow": "3"}


@pytest.mark.slow
def test_two_watchers_at_once_take_a_model_back_once(breaching: Path, tmp_path: Path) -> None:
    settings, _ = copied(breaching, tmp_path / "two")
    both = [
        subprocess.Popen(
            command("deploy.watch"), cwd=ROOT, env=environment_of(settings), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip

    said = [process.communicate(timeout=200) for process in both]

    assert sorted(process.returncode for process in both) == [0, BREACH], said
    assert reverts(settings) == 1
    assert sorted(json.loads(out.splitlines()[-1])["status"] for out, _ in said) == ["none", "reverted"]
