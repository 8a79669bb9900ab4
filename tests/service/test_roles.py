"""Moves of the roles: compare-and-set, a history that survives a kill at any step, one winner among many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.clock import ManualClock
from service.roles import HISTORY, RolesMoved, Seat, hold_roles, move_roles, read_history, read_roles
from service.settings import ROOT

FIRST, SECOND = Seat("1", "d1", "packages/d1"), Seat("2", "d2", "packages/d2")
# Moves the roles and ends as if the power had gone, at a named call.
KILLED = """
import os, signal, sys
from pathlib import Path
from service import roles

def killed(*_): os.kill(os.getpid(), signal.SIGKILL)

{plant}
roles.move_roles(Path(sys.argv[1]), 1, {{"primary": roles.Seat("2", "d2", "packages/d2")}}, "cut short")
"""
PLANTS = {
    "before the history": "roles.append_line = killed",
    "while the line is written": """
def torn(path, line):
    with path.open("ab") as file: file.write(b'{"revision": 2, "at')
    killed()
roles.append_line = torn""",
    "between history and roles": "roles.replace_text = killed",
    "before the rename": "Path.replace = killed",
    "after the rename": "replace = Path.replace\nPath.replace = lambda *a: (replace(*a), killed())",
}


def killed_move(folder: Path, plant: str) -> None:
    """Move primary from version 1 to 2 in a process that is killed on the way."""
    command = [sys.executable, "-c", KILLED.format(plant=PLANTS[plant]), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_move_says_who_when_what_and_why(tmp_path: Path) -> None:
    at = datetime(2013, 10, 1, 12, 30, tzinfo=UTC)
    move_roles(tmp_path, 0, {"primary": FIRST}, "first")

    with hold_roles(tmp_path, 1, ManualClock(at)) as move:
        move({"primary": SECOND, "shadow": None}, "promoted after two weeks")

    _, last = read_history(tmp_path)
    assert (last.revision, last.at, last.reason, last.done) == (2, at, "promoted after two weeks", True)
    assert (dict(last.before), dict(last.after)) == (
        {"primary": FIRST, "shadow": None},
        {"primary": SECOND, "shadow": None},
    )
    assert "@" in last.by


def test_a_refused_move_leaves_no_line(tmp_path: Path) -> None:
    move_roles(tmp_path, 0, {"primary": FIRST})
    before = (tmp_path / HISTORY).read_bytes()

    with pytest.raises(RolesMoved, match="revision 1, not 0"):
        move_roles(tmp_path, 0, {"primary": SECOND})

    assert (tmp_path / HISTORY).read_bytes() == before


@pytest.mark.parametrize("plant", PLANTS)
def test_after_a_kill_at_any_step_one_can_tell_what_happened(plant: str, tmp_path: Path) -> None:
    move_roles(tmp_path, 0, {"primary": FIRST}, "first")
    kept = (tmp_path / HISTORY).read_bytes()

    killed_move(tmp_path, plant)

    moved = plant == "after the rename"
    written = plant in {"between history and roles", "before the rename", "after the rename"}
    assert read_roles(tmp_path).seats["primary"] == (SECOND if moved else FIRST)
    assert [(m.reason, m.done) for m in read_history(tmp_path)] == [("first", True), ("cut short", moved)][
        : 1 + written
    ]

    again = move_roles(tmp_path, 2 if moved else 1, {"primary": SECOND}, "again")

    history = read_history(tmp_path)
    assert [m.reason for m in history if m.done] == ["first", *(["cut short"] if moved else []), "again"]
    assert [m.reason for m in history if not m.done] == (["cut short"] if written and not moved else [])
    assert again.revision == history[-1].revision
    assert (tmp_path / HISTORY).read_bytes().startswith(kept)


def test_of_many_movers_at_once_one_wins_and_the_history_knows_only_that_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from service.roles import *\n"
        "sys.stdin.read()\n"
        "try: move_roles(Path(sys.argv[1]), 0, {'primary': Seat(sys.argv[2], 'd', 'p')}, sys.argv[2])\n"
        "except RolesMoved: sys.exit(3)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    movers = [subprocess.Popen([*command, str(n)], cwd=ROOT, env=env, stdin=subprocess.PIPE) for n in range(4)]
    for mover in movers:
        assert mover.stdin is not None
        mover.stdin.close()

    codes = [mover.wait(30) for mover in movers]

    (move,) = read_history(tmp_path)
    assert sorted(codes) == [0, 3, 3, 3]
    assert move.reason == read_roles(tmp_path).seats["primary"].version == str(codes.index(0))


def test_roles_from_before_there_was_a_history_go_on_with_one(tmp_path: Path) -> None:
    seats = {"primary": {"version": "1", "digest": "d1", "package": "packages/d1"}}
    (tmp_path / "roles.json").write_text(json.dumps({"revision": 5, "roles": seats}))
    assert read_history(tmp_path) == []

    move_roles(tmp_path, 5, {"primary": SECOND})

    assert [(m.revision, m.before["primary"], m.done) for m in read_history(tmp_path)] == [(6, FIRST, True)]
