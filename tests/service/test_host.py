"""A runner's inside: what is seated plays, and keeps playing until something better is ready."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.host import Host
from service.roles import Role, Seat, move_roles, read_roles
from service.settings import ROOT
from tests.bundle import Bundle, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Packages in every role."""
    return make_bundle(tmp_path)


def seat(bundle: Bundle, **moves: Seat | None) -> None:
    """Move the roles."""
    roles = read_roles(bundle.settings.models_dir)
    move_roles(bundle.settings.models_dir, roles.revision, moves)  # type: ignore[arg-type]  # roles by name


def seated(bundle: Bundle, role: Role) -> Seat:
    """Who sits there."""
    return read_roles(bundle.settings.models_dir).seats[role]


def follow(host: Host, *steps: Callable[[], None], wait_s: float = 2.0) -> list[dict[str, Any]]:
    """Let the host follow while things happen; returns what it said after each change."""
    told: list[dict[str, Any]] = []

    async def run() -> None:
        task = asyncio.create_task(host.follow(lambda: told.append(host.hello())))
        for step in steps:
            seen = len(told)
            step()
            for _ in range(int(wait_s / 0.02)):
                await asyncio.sleep(0.02)
                if len(told) > seen:
                    break
        task.cancel()

    asyncio.run(run())
    return told


def test_it_says_who_plays(bundle: Bundle) -> None:
    hello = Host(bundle.settings.models_dir, "primary").hello()

    sits = seated(bundle, "primary")
    assert (hello["version"], hello["digest"], hello["seated"], hello["problem"]) == (
        sits.version,
        sits.digest,
        True,
        "",
    )
    assert "origin" in hello["features"]
    assert 0 < hello["base_rate"] < 1


def test_another_model_takes_the_place_of_the_one_that_plays(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "primary")
    shadow = seated(bundle, "shadow")

    (told,) = follow(host, lambda: seat(bundle, primary=shadow))

    assert told["digest"] == shadow.digest
    assert host.score([{}])["version"] == shadow.version


def test_a_rollback_needs_no_package(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "primary")
    first, second = seated(bundle, "primary"), seated(bundle, "shadow")

    def roll_back() -> None:
        (bundle.settings.models_dir / first.package / "manifest.json").unlink()
        seat(bundle, primary=first)

    told = follow(host, lambda: seat(bundle, primary=second), roll_back)

    assert [t["digest"] for t in told] == [second.digest, first.digest]
    assert told[-1]["problem"] == ""


def test_a_package_that_was_altered_does_not_take_the_place(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "primary")
    first, second = seated(bundle, "primary"), seated(bundle, "shadow")
    model = next((bundle.settings.models_dir / second.package).glob("model.*"))
    model.write_bytes(model.read_bytes() + b"\n")

    (told,) = follow(host, lambda: seat(bundle, primary=second))

    assert told["digest"] == first.digest
    assert "SHA-256 differs" in told["problem"]
    assert host.score([{}])["version"] == first.version


def test_a_model_that_fails_its_first_rows_does_not_take_the_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(bundle.settings.models_dir, "primary")
    first, second = seated(bundle, "primary"), seated(bundle, "shadow")

    def fails(*_: Any) -> Any:
        msg = "no such tree"
        raise IndexError(msg)

    monkeypatch.setattr("service.host.load_package", lambda *_: SimpleNamespace(score=fails))
    (told,) = follow(host, lambda: seat(bundle, primary=second))

    assert told["digest"] == first.digest
    assert "no such tree" in told["problem"]


def test_an_emptied_role_stops_playing(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "shadow")

    (told,) = follow(host, lambda: seat(bundle, shadow=None))

    assert (told["seated"], told["digest"]) == (False, None)
    assert "no model plays shadow" in told["problem"]


@pytest.mark.parametrize("hurt", [Path.unlink, lambda path: path.write_text("{")], ids=["gone", "torn"])
def test_roles_that_cannot_be_read_change_nothing(bundle: Bundle, hurt: Callable[[Path], None]) -> None:
    path = bundle.settings.models_dir / "roles.json"
    text = path.read_text()
    host = Host(bundle.settings.models_dir, "primary")
    digest = host.hello()["digest"]

    def mend() -> None:
        path.write_text(text)

    told = follow(host, lambda: hurt(path), mend)

    assert [t["digest"] for t in told] == [digest, digest]
    assert told[0]["problem"] != ""
    assert told[1]["problem"] == ""


def test_a_fault_nobody_foresaw_does_not_end_the_following(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sits = seated(bundle, "fallback")
    host = Host(bundle.settings.models_dir, "primary")
    looks: list[None] = []
    real = host._look

    def faulty() -> Any:
        looks.append(None)
        if len(looks) == 1:
            msg = "a fault nobody foresaw"
            raise RuntimeError(msg)
        return real()

    monkeypatch.setattr(host, "_look", faulty)

    (told,) = follow(host, lambda: seat(bundle, primary=sits))

    assert len(looks) == 2
    assert told["digest"] == sits.digest


def test_a_runner_without_a_model_starts_and_takes_one_later(bundle: Bundle) -> None:
    sits = seated(bundle, "fallback")
    seat(bundle, fallback=None)
    host = Host(bundle.settings.models_dir, "fallback")
    assert host.hello()["digest"] is None

    (told,) = follow(host, lambda: seat(bundle, fallback=sits))

    assert told["digest"] == sits.digest


def test_the_same_model_under_another_version_is_only_renamed(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "primary")
    sits = seated(bundle, "primary")

    (told,) = follow(host, lambda: seat(bundle, primary=Seat("99", sits.digest, sits.package)))

    assert (told["version"], told["digest"]) == ("99", sits.digest)
    assert host.score([{}])["version"] == "99"


def test_one_row_that_cannot_be_scored_does_not_cost_the_others_theirs(bundle: Bundle) -> None:
    host = Host(bundle.settings.models_dir, "primary")

    scores = host.score([{}, {"dep_hour": "far"}, {}])["scores"]

    assert scores[1] is None
    assert scores[0] == scores[2] == host.score([{}])["scores"][0]


HUNGRY = """
import asyncio
from service.host import MemoryGuard
async def main():
    guard = asyncio.create_task(MemoryGuard({limit} << 20).watch())
    kept = []
    try:
        for _ in range(200):
            kept.append(bytearray(b"x" * ({step} << 20)))
            await asyncio.sleep({wait})
    except MemoryError:
        print("refused", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize(("step", "wait", "code", "out"), [(500, 0, 0, "refused\n"), (2, 0.05, 1, "")])
def test_memory_beyond_the_limit_is_refused_or_ends_the_process(step: int, wait: float, code: int, out: str) -> None:
    script = HUNGRY.format(limit=300, step=step, wait=wait)

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.returncode, done.stdout) == (code, out)


def test_a_torn_package_folder_is_a_problem_and_not_a_crash(bundle: Bundle) -> None:
    roles = json.loads((bundle.settings.models_dir / "roles.json").read_text())
    roles["roles"]["primary"]["package"] = "packages/never"
    (bundle.settings.models_dir / "roles.json").write_text(json.dumps(roles))

    host = Host(bundle.settings.models_dir, "primary")

    assert host.hello()["digest"] is None
    assert "packages/never/manifest.json cannot be read" in host.problem
