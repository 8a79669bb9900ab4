"""`bentoml serve` started in other ways: with tokens, more workers, two shadows, and with what it cannot use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import environment
from service.clock import write_clock
from service.roles import SLOTS
from service.settings import ROOT
from tests.bundle import NOW, REQUEST, make_bundle, seat_model
from tests.serving import load, served

pytestmark = pytest.mark.slow


def test_tokens_keep_strangers_out_and_show_nowhere(tmp_path: Path) -> None:
    secret = "s3cret-of-the-callers"
    with served(make_bundle(tmp_path), tmp_path, UNDERSTUDY_PREDICT_TOKEN=secret) as running:
        stranger = running.post("/predict", REQUEST)
        admin = running.get("/admin/roles", ok_only=False)
        probe = running.get("/readyz", ok_only=False)
        asked = urllib.request.Request(
            f"{running.url}/predict",
            json.dumps(REQUEST).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            known = answer.status
        metrics = running.get("/metrics")

    assert (stranger[0], admin, probe, known) == (401, 200, 200, 200)
    written = [path.read_bytes() for path in tmp_path.rglob("*.log")]
    written += [path.read_bytes() for path in running.bundle.settings.log_dir.rglob("*.jsonl")]
    assert all(secret.encode() not in text for text in [*written, metrics.encode()])


def test_two_workers_share_the_runners_and_their_metrics_add_up(tmp_path: Path) -> None:
    with served(make_bundle(tmp_path), tmp_path, UNDERSTUDY_WORKERS="2") as running:
        running.wait_for_runner("shadow")
        results: list[tuple[int, Any]] = []

        def both_have_answered() -> bool:
            # The service is ready with its first worker; the second may come a little later.
            results.extend(load(running.url, 200, 16, [json.dumps(REQUEST).encode()]))
            return len(list((running.bundle.settings.log_dir / "predictions").glob("*.jsonl"))) == 2

        running.wait_until(both_have_answered)
        counted = running.series("understudy_predictions_total")
        running.wait_for("shadow", lambda r: r["outcome"] == "scored", count=len(results))

    assert {status for status, _ in results} == {200}
    assert counted == len(results)


def test_what_was_accepted_is_answered_though_the_service_is_told_to_stop(tmp_path: Path) -> None:
    results: list[tuple[int, Any]] = []
    rows = [{**REQUEST, "request_id": f"row-{i}"} for i in range(1000)]
    with served(make_bundle(tmp_path), tmp_path) as running:
        logged = running.bundle.settings.log_dir / "predictions"
        caller = threading.Thread(target=lambda: results.append(running.post("/predict_batch", rows)))
        caller.start()
        running.wait_until(lambda: any(path.stat().st_size for path in logged.glob("*.jsonl")))
    caller.join()

    ((status, answers),) = results
    assert status == 200
    assert {a["role"] for a in answers} == {"primary"}
    records = [json.loads(line) for path in logged.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(records) == 1000
    rehearsed = running.bundle.settings.log_dir / "shadow"
    assert sum(len(path.read_text().splitlines()) for path in rehearsed.glob("*.jsonl")) == 1000


def test_of_two_shadows_one_may_die_and_the_other_goes_on(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    seats = {slot: seat_model(bundle.settings, slot, seed=11 + n) for n, slot in enumerate(SLOTS[1:3])}
    with served(bundle, tmp_path, UNDERSTUDY_SHADOWS="2", UNDERSTUDY_NOISE_SAMPLE="1") as live:
        for slot in ("shadow", "shadow_2"):
            live.wait_for_runner(slot)
        live.post("/predict", {**REQUEST, "request_id": "both"})
        both = live.wait_for("shadow", lambda r: r["request_id"] == "both", count=3)
        told = live.json("/admin/roles")["roles"]
        roles = ("understudy", "primary", "fallback", "shadow", "shadow_2")
        groups = [(os.getsid(pid), os.getpgid(pid) == pid) for pid in map(live.process, roles)]

        killed = live.process("shadow")
        os.kill(killed, signal.SIGKILL)
        results = load(live.url, 200, 4, [json.dumps(REQUEST).encode()])
        live.wait_for("shadow", lambda r: r["shadow"] == "shadow_2" and r["outcome"] == "scored", count=201)
        ready = live.get("/readyz", ok_only=False)
        live.wait_until(lambda: live.process("shadow", default=killed) != killed)
        ids = [r["request_id"] for r in live.records("shadow") if r["shadow"] == "shadow_2"]

    assert {r["shadow"]: (r["outcome"], r["model_version"]) for r in both} == {
        "primary": ("scored", "7"), "shadow": ("scored", "6"), "shadow_2": ("scored", seats["shadow_2"].version)
    }  # fmt: skip
    assert {status for status, _ in results} == {200}
    assert {a["role"] for _, a in results} == {"primary"}
    assert ready == 200
    # The system weighs one's niceness against the others' only within a session.
    assert len(set(groups)) == 1
    assert groups[0][1]
    assert sorted(ids) == sorted(["both", *(a["request_id"] for _, a in results)])
    assert told["shadow_2"]["current"]
    assert not told["shadow_3"]["connected"]
    assert "set UNDERSTUDY_SHADOWS=3" in told["shadow_3"]["problem"]
    assert "set UNDERSTUDY_SHADOWS=3" in (tmp_path / "serve.log").read_text()


def test_too_many_at_once_are_told_when_to_come_back(tmp_path: Path) -> None:
    with served(make_bundle(tmp_path), tmp_path, UNDERSTUDY_MAX_INFLIGHT="2") as running:
        results = load(running.url, 500, 32, [json.dumps(REQUEST).encode()])

    assert {status for status, _ in results} == {200, 429}
    assert all("limit 2" in answer["error"] for status, answer in results if status == 429)


def test_a_lost_online_store_leaves_the_fallback(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    (bundle.settings.state_dir / "online.db").unlink()
    with served(bundle, tmp_path) as running:
        status, answer = running.post("/predict", REQUEST)

    assert (status, answer["role"], answer["fallback_reason"]) == (200, "fallback", "store_unavailable")


def test_a_tampered_package_never_answers(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    seats = json.loads((bundle.settings.models_dir / "roles.json").read_text())["roles"]
    model = bundle.settings.models_dir / seats["primary"]["package"] / "model.txt"
    model.write_text(model.read_text().replace("leaf_value=", "leaf_value=9", 1))
    with served(bundle, tmp_path) as running:
        status, answer = running.post("/predict", REQUEST)

    assert (status, answer["role"], answer["fallback_reason"]) == (200, "fallback", "primary_absent")


def refused(**variables: str) -> str:
    """What ``bentoml serve`` says when it does not start with some settings."""
    done = subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "serve", "--port", "1"],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_without_models_the_service_says_which_command_makes_them(tmp_path: Path) -> None:
    said = refused(UNDERSTUDY_MODELS_DIR=str(tmp_path / "none"), UNDERSTUDY_STATE_DIR=str(tmp_path))

    assert "run `make train` first" in said
    assert "Traceback" not in said


def test_a_misspelt_setting_stops_the_service(tmp_path: Path) -> None:
    assert "unknown setting UNDERSTUDY_MODEL_DIR" in refused(UNDERSTUDY_MODEL_DIR=str(tmp_path))


def test_a_service_that_is_told_to_end_while_it_starts_ends_in_good_order(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    write_clock(tmp_path / "state" / "clock", NOW)
    log, command = tmp_path / "serve.log", [str(Path(sys.executable).with_name("bentoml")), "serve", "--port", "1"]
    # So long that it is killed where it waits for runners that have gone.
    env = {**environment(tmp_path), "UNDERSTUDY_WARMUP_S": "600"}
    with log.open("w") as output, subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output) as process:
        while "Service primary initialized" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()

    gateway, said = "[entry_service:understudy:1] ", log.read_text()
    begun, ended = "Running startup hook: open", "Completed async cleanup hook: close"
    assert said.count(gateway + begun) == said.count(gateway + ended)
