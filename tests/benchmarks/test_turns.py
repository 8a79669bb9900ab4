"""A load in turns sends what it is told to, and a window counts what fell due in it, also what is answered later."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.servers import own_path
from benchmarks.turns import Turns
from tests.benchmarks.server import Reply, answering


@pytest.fixture
def kinds(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "zero.jsonl", tmp_path / "one.jsonl"]
    for path in paths:
        path.write_text(f'"{path.stem}"\n')
    return paths


def test_each_turn_sends_its_own_kind(kinds: list[Path]) -> None:
    with answering(lambda *_: Reply()) as server, Turns(server.url, kinds, connections=2) as load:
        load.window(0.1)
        load.take(1)
        time.sleep(0.3)
        before = len(server.bodies)
        found = load.window(0.1)
        some = server.bodies[before : before + found["requests"]]

    assert server.bodies[0] == b'"zero"'
    assert set(some) == {b'"one"'}
    assert found["requests"] > 0
    assert found["non_200"] == 0


@pytest.mark.parametrize("rate", [0.0, 50.0])
def test_a_window_waits_for_its_last_answer_and_counts_no_other(kinds: list[Path], rate: float) -> None:
    with (
        answering(lambda *_: Reply(after_s=0.2)) as server,
        Turns(server.url, kinds, connections=40, rate=rate) as load,
    ):
        load.window(0.1)
        found = load.window(0.5)

    due = 50 * 0.5 if rate else 40 * 0.5 / 0.2
    assert found["requests"] == pytest.approx(due, rel=0.4)
    assert found["p50"] >= 200
    assert found["non_200"] == 0


def test_what_is_refused_or_never_answered_is_told(kinds: list[Path]) -> None:
    def one_of_four(number: int, _: bytes) -> Reply:
        return Reply(status=(200, 503, 0, 200)[number % 4])

    with answering(one_of_four) as server, Turns(server.url, kinds, connections=1, rate=40) as load:
        found = load.window(1.0)

    assert found["requests"] == pytest.approx(30, abs=10)
    # What was refused, and what was lost with its connection.
    assert found["non_200"] == pytest.approx(20, abs=8)


def test_it_sends_nothing_beyond_loopback(kinds: list[Path]) -> None:
    command = [sys.executable, "-m", "benchmarks.turns", "http://192.0.2.1/predict", "--bodies", *map(str, kinds)]

    done = subprocess.run(
        command, env=own_path(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )

    assert done.returncode == 2
    assert "loopback" in done.stderr
