"""The operator's hand on the breakers, and the private folder."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service.admin import admin_app
from service.breaker import Breaker, Rules
from service.cast import Actor, Cast
from service.control import Control, read_modes, write_mode
from service.errors import BadRequest, NotReady
from service.fakes import FakeRunner
from service.following import Follower
from service.roles import ROLES
from service.rundir import share_run_dir, socket_of
from service.settings import ROOT
from tests.bundle import settings_in


def cast() -> Cast:
    """Three actors."""
    primary, fallback, shadow = (Actor(role, FakeRunner(lambda _: 0.3), Breaker(Rules())) for role in ROLES)
    return Cast(primary, fallback, (shadow,), base_rate=0.2)


def test_a_mode_reaches_every_worker_that_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "breakers.json"
    workers = [Control(path, cast()) for _ in range(2)]

    write_mode(path, "primary", "forced_open")
    for worker in workers:
        worker.look()

    assert [w._cast.primary.breaker.state for w in workers] == ["forced_open"] * 2
    assert workers[0]._cast.fallback.breaker.state == "closed"


def test_a_worker_started_later_finds_it_too(tmp_path: Path) -> None:
    write_mode(tmp_path / "breakers.json", "shadow", "disabled")

    worker = Control(tmp_path / "breakers.json", cast())
    worker.look()

    assert worker._cast.shadows[0].breaker.state == "disabled"


def test_it_is_followed_while_the_service_runs(tmp_path: Path) -> None:
    worker = Control(tmp_path / "breakers.json", cast())

    async def run() -> str:
        worker.start()
        write_mode(worker.path, "primary", "forced_open")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if worker._cast.primary.breaker.state != "closed":
                break
        await worker.close()
        return worker._cast.primary.breaker.state

    assert asyncio.run(run()) == "forced_open"


def followed(tmp_path: Path) -> Control:
    """Two breakers by an operator's hand, followed by a worker."""
    worker = Control(tmp_path / "b.json", cast())
    write_mode(worker.path, "primary", "forced_open")
    write_mode(worker.path, "shadow", "disabled")
    worker.look()
    return worker


def states(worker: Control) -> list[str]:
    """Of primary, fallback and shadow."""
    return [actor.breaker.state for actor in worker._cast]


def test_a_file_that_is_gone_leaves_the_breakers_to_themselves(tmp_path: Path) -> None:
    worker = followed(tmp_path)

    worker.path.unlink()
    worker.look()

    assert states(worker) == ["closed"] * 3


def test_a_file_that_cannot_be_read_changes_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = followed(tmp_path)

    caplog.clear()
    worker.path.write_text("[1")
    for _ in range(3):
        worker.look()

    assert states(worker) == ["forced_open", "closed", "disabled"]
    assert len(caplog.messages) == 1
    with pytest.raises(NotReady, match="set a mode anew, or remove it"):
        read_modes(worker.path)


def test_a_file_is_read_again_when_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = followed(tmp_path)
    write_mode(worker.path, "primary", "auto")

    def busy(_: Path) -> str:
        raise PermissionError

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", busy)
        worker.look()
    before = states(worker)
    worker.look()

    assert before == ["forced_open", "closed", "disabled"]
    assert states(worker) == ["closed", "closed", "disabled"]


def test_a_mode_set_over_a_damaged_file_keeps_the_others(tmp_path: Path) -> None:
    worker = followed(tmp_path)
    worker.path.write_text("{")
    gear: Any = SimpleNamespace(cast=worker._cast, control=worker)

    (answer,) = asked(gear, ("/breakers", b'{"role": "fallback", "mode": "disabled"}'))

    assert answer.status_code == 200
    assert states(worker) == ["forced_open", "disabled", "disabled"]
    assert read_modes(worker.path) == {"primary": "forced_open", "fallback": "disabled", "shadow": "disabled"}


def test_a_look_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.following._LOOK_S", 0.01)
    looked: list[int] = []

    class Clumsy(Follower):
        def look(self) -> None:
            looked.append(1)
            if len(looked) == 2:
                raise RuntimeError

    async def run() -> None:
        clumsy = Clumsy()
        clumsy.start()
        while len(looked) < 4:
            await asyncio.sleep(0.005)
        await clumsy.close()

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(("role", "mode", "named"), [("prima", "auto", "role"), ("primary", "openn", "mode")])
def test_a_typing_error_is_told(tmp_path: Path, role: str, mode: str, named: str) -> None:
    with pytest.raises(BadRequest) as error:
        write_mode(tmp_path / "b.json", role, mode)

    assert error.value.problems[0]["field"] == named
    assert not (tmp_path / "b.json").exists()


def admin(tmp_path: Path, *calls: tuple[str, bytes]) -> list[httpx.Response]:
    """Ask the admin routes of a small gear: a path, and a body to POST or nothing to GET."""
    players = cast()
    return asked(SimpleNamespace(cast=players, control=Control(tmp_path / "b.json", players)), *calls)


def asked(gear: Any, *calls: tuple[str, bytes]) -> list[httpx.Response]:
    """The same of a given gear."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(admin_app(lambda: gear))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return [await (client.post(path, content=body) if body else client.get(path)) for path, body in calls]

    return asyncio.run(run())


def test_the_admin_routes_show_and_move_the_breakers(tmp_path: Path) -> None:
    moved, shown = admin(
        tmp_path, ("/breakers", b'{"role": "primary", "mode": "forced_open"}'), ("/breakers", b"")
    )  # fmt: skip

    assert moved.status_code == 200
    assert shown.json()["primary"] == {"state": "forced_open", "calls": 0, "failed": 0, "slow": 0}


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 422), (b'{"role": "primary", "mode": "x"}', 422)])
def test_what_they_cannot_read_they_refuse(tmp_path: Path, body: bytes, status: int) -> None:
    (answer,) = admin(tmp_path, ("/breakers", body))

    assert answer.status_code == status
    assert answer.json()["problems"]


def test_the_folder_is_private_shared_with_children_and_removed_at_the_end() -> None:
    script = (
        "import os, subprocess, sys\n"
        "from service.rundir import share_run_dir\n"
        "from service.settings import Settings\n"
        "made = share_run_dir(Settings()).run_dir\n"
        "print(made, oct(made.stat().st_mode & 0o777), os.environ['UNDERSTUDY_RUN_DIR'] == str(made))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    folder, mode, shared = done.stdout.split()
    assert (mode, shared) == ("0o700", "True")
    assert not Path(folder).exists()


def test_a_folder_of_ones_own_choice_is_made_and_kept(tmp_path: Path) -> None:
    settings = share_run_dir(settings_in(tmp_path, run_dir=tmp_path / "run"))

    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert socket_of(settings, "primary") == tmp_path / "run" / "primary.sock"
    assert "UNDERSTUDY_RUN_DIR" not in os.environ


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)

    with pytest.raises(NotReady, match="chmod 700"):
        share_run_dir(settings_in(tmp_path, run_dir=tmp_path / "run"))
