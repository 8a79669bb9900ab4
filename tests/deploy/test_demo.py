"""The whole loop on a small stretch of real data, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from deploy.demo import DemoFailed, emptied, environment, serving, step, stop
from monitoring import export
from service.clock import write_clock
from service.settings import ROOT, Settings
from tests.bundle import NOW, make_bundle, primary_contract
from tests.training.conftest import read_raw, write_raw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished demo: trained on the winter, replaying two days of March.

    Before March there is too little to learn from, and the gate refuses.
    """
    folder = tmp_path_factory.mktemp("demo")
    flights, weather, airports = read_raw()
    raw = write_raw(folder / "raw", flights[flights["month"] <= 3], weather[weather["month"] <= 3], airports)
    command = [
        sys.executable, "-m", "deploy.demo", "--home", str(folder / "home"), "--raw", str(raw),
        "--primary-as-of", "2013-03-01", "--shadow-as-of", "2013-03-10", "--start", "2013-03-10", "--end", "2013-03-12",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280)
    return folder / "home", done


def test_the_demo_goes_round_the_loop_and_accounts_for_everything(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    home, done = demo
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    result = json.loads(done.stdout.splitlines()[-1])

    assert list(result) == [
        "predictions", "failed", "sampled", "scored", "dropped", "verdict", "exact_share", "report", "seconds",
    ]  # fmt: skip
    assert result["exact_share"] == 1.0
    rows = pd.read_parquet(home / "state" / "rows.parquet")["event_timestamp"]
    due = int(((rows >= pd.Timestamp("2013-03-10T00:00Z")) & (rows < pd.Timestamp("2013-03-12T00:00Z"))).sum())
    assert due > 1500
    assert (result["predictions"], result["failed"]) == (due, 0)
    assert result["sampled"] == result["predictions"] == result["scored"] + result["dropped"]
    assert result["verdict"] in {"promote", "hold", "reject"}
    assert Path(result["report"]).read_text().startswith("<!doctype html>")
    assert still_running(home) == []


def test_what_the_demo_logged_could_be_known_when_it_was_logged(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    home, _ = demo
    settings = Settings(state_dir=home / "state", models_dir=home / "models")

    log = export.predictions(settings.log_dir, primary_contract())

    assert log.damaged_lines == 0
    segments = (settings.log_dir / "predictions").glob("*.jsonl")
    lines = [json.loads(line) for path in segments for line in path.read_text().splitlines()]
    ages = [(r["at"], at) for r in lines for at in r["event_times"].values() if at is not None]
    assert len(ages) > 8000
    assert all(at <= taken for taken, at in ages)
    assert sum(r["role"] == "primary" for r in lines) > 0.9 * len(lines)


def still_running(home: Path) -> list[int]:
    """Processes started in the environment of a demo folder."""
    mark = f"UNDERSTUDY_STATE_DIR={home / 'state'}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_process_behind(tmp_path: Path, sent: signal.Signals) -> None:
    make_bundle(tmp_path)
    code = (
        "import signal, sys, time; from pathlib import Path; from deploy.demo import *\n"
        "from service.clock import write_clock; from datetime import datetime\n"
        "home = Path(sys.argv[1]); signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "write_clock(home / 'state/clock', datetime.fromisoformat(sys.argv[2]))\n"
        "with serving(environment(home), home / 'serve.log') as url:\n"
        "    print(url, flush=True); time.sleep(300)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), NOW.isoformat()], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline().startswith("http://127.0.0.1:")
    assert len(still_running(tmp_path)) >= 4

    child.send_signal(sent)
    # A process that is still starting is given its grace, 30 s, before it is killed.
    child.wait(70)
    child.stdout.close()

    end = time.monotonic() + 10
    while still_running(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert still_running(tmp_path) == []


def test_a_second_interrupt_while_it_drains_does_not_leave_it_running() -> None:
    stubborn = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: time.sleep(3))\n"
        "print(1, flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    again = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    again.start()

    stop(child, patience_s=2)

    child.stdout.close()
    assert child.poll() is not None


def test_only_a_folder_of_a_demo_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")

    with pytest.raises(DemoFailed, match="is not empty and no demo made it"):
        emptied(tmp_path)

    assert (tmp_path / "precious").exists()
    home = emptied(tmp_path / "demo")
    (home / "state").mkdir()
    assert list(emptied(home).iterdir()) == [home / ".understudy-demo"]


def test_a_failing_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match=r"try it ended with exit code 2: python -m training\.train --as-of never"):
        step("try it", environment(tmp_path), "training.train", "--as-of", "never")


def test_a_service_that_cannot_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    write_clock(tmp_path / "state" / "clock", NOW)

    with pytest.raises(DemoFailed, match="run `make train` first"), serving(environment(tmp_path), tmp_path / "log"):
        pass
