"""What a killed process last said of itself is taken back; what it counted stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # carries no types
import pytest

from service.metrics import SCORE, count_shadow_scores, forget_dead_processes


def ended_pid() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_gauges_of_a_dead_process_go_and_everything_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = ended_pid(), os.getpid()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for name in (f"gauge_liveall_{dead}", f"gauge_livemin_{dead}", f"counter_{dead}", f"gauge_liveall_{alive}"):
        (tmp_path / f"{name}.db").touch()

    forget_dead_processes()

    assert {path.stem for path in tmp_path.iterdir()} == {f"counter_{dead}", f"gauge_liveall_{alive}"}


def test_a_process_that_nobody_has_waited_for_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gauge = tmp_path / f"gauge_liveall_{process.pid}.db"
        gauge.touch()
        forget_dead_processes()
        assert gauge.exists()

        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        forget_dead_processes()

        assert not gauge.exists()


def test_a_process_of_whom_nothing_is_told_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("psutil.Process", hidden)
    (tmp_path / "gauge_liveall_7.db").touch()

    forget_dead_processes()

    assert (tmp_path / "gauge_liveall_7.db").exists()


def test_a_file_that_names_no_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "gauge_liveall_x.db").touch()

    forget_dead_processes()

    assert (tmp_path / "gauge_liveall_x.db").exists()


def test_scores_counted_together_are_counted_as_one_by_one() -> None:
    scores = [0.0, 0.05, 0.1, 0.10001, 0.5, 1.0, 1.0]

    count_shadow_scores("together", scores)
    count_shadow_scores("together", [])
    for score in scores:
        SCORE.labels("apart").observe(score)

    def seen(role: str) -> dict[tuple[str, str], float]:
        samples = [sample for metric in SCORE.collect() for sample in metric.samples]
        return {
            (s.name, s.labels.get("le", "")): s.value
            for s in samples
            if s.labels["role"] == role and "created" not in s.name
        }

    assert seen("together") == seen("apart")
