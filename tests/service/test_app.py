"""The real thing: `bentoml serve` on a small bundle, asked over HTTP, and hurt."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.demo import environment
from service.answers import REFUSALS
from service.clock import write_clock
from service.roles import SLOTS, Role, Seat, move_roles, read_roles
from service.settings import ROOT
from tests.bundle import NOW, REQUEST, STORED, make_bundle, seat_model
from tests.serving import Served, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served bundle, its clock standing at NOW."""
    folder = tmp_path_factory.mktemp("live")
    with served(make_bundle(folder), folder) as running:
        yield running


def test_a_good_request_is_answered_by_the_primary_and_logged(live: Served) -> None:
    status, answer = live.post("/predict", {**REQUEST, "request_id": "good"})

    assert (status, answer["role"], answer["confidence"], answer["request_id"]) == (200, "primary", "normal", "good")
    (record,) = [r for r in live.records("predictions") if r["request_id"] == "good"]
    assert record["prediction"] == answer["prediction"]
    assert record["at"].startswith(NOW.isoformat()[:16])


def test_the_shadow_rehearses_the_same_request(live: Served) -> None:
    live.post("/predict", {**REQUEST, "request_id": "rehearsed"})

    (record,) = live.wait_for("shadow", lambda r: r["request_id"] == "rehearsed")

    assert (record["outcome"], record["model_version"]) == ("scored", "6")


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "body"),
        (json.dumps({**REQUEST, "origin": "XXX"}).encode(), 422, "origin"),
        (json.dumps({**REQUEST, "distance": float("nan")}).encode(), 422, "distance"),
        (b"0" * 10_000_000, 413, "body"),
    ],
    ids=["malformed", "closed set", "nan", "10 MB"],
)
def test_bad_requests_get_a_4xx_that_names_the_field(live: Served, body: bytes, status: int, named: str) -> None:
    got, answer = live.post("/predict", body)

    assert got == status
    assert [p["field"] for p in answer["problems"]] == [named]


def test_other_media_types_and_pickle_are_refused(live: Served) -> None:
    assert live.post("/predict", b"x", "application/vnd.bentoml+pickle")[0] == 415
    assert live.post("/predict", b"origin=EWR", "application/x-www-form-urlencoded")[0] == 415


def test_a_batch_answers_row_by_row(live: Served) -> None:
    rows = [REQUEST, {**REQUEST, "origin": "XXX"}, {**REQUEST, "tailnum": "never seen"}] * 20

    status, answers = live.post("/predict_batch", rows)

    assert (status, len(answers)) == (200, 60)
    assert {a["role"] for a in answers[0::3]} == {"primary"}
    assert {a["problems"][0]["field"] for a in answers[1::3]} == {"origin"}
    assert {a["confidence"] for a in answers[2::3]} == {"degraded"}


def test_labels_are_kept(live: Served) -> None:
    label = {"request_id": "good", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}

    status, answer = live.post("/labels", [label])

    assert (status, answer) == (200, {"received": 1, "kept": 1})
    assert [r["label"] for r in live.records("labels") if r["request_id"] == "good"] == [1.0]


def test_the_openapi_document_knows_the_contract(live: Served) -> None:
    document = json.loads(live.get("/docs.json"))

    fields = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = (
        fields.get("properties") or document["components"]["schemas"][fields["$ref"].rsplit("/", 1)[1]]["properties"]
    )
    assert set(REQUEST) <= set(names)


def test_the_openapi_document_knows_every_refusal(live: Served) -> None:
    paths = json.loads(live.get("/docs.json"))["paths"]

    for endpoint in ("/predict", "/predict_batch", "/labels"):
        answers = paths[endpoint]["post"]["responses"]
        assert set(answers) == {"200", *map(str, REFUSALS)}
        refused = answers["422"]["content"]["application/json"]["schema"]
        assert set(refused["properties"]) == {"error", "problems"}
        assert set(refused["required"]) == set(live.post(endpoint, b"7")[1])


def test_metrics_count_what_happened(live: Served) -> None:
    before = live.series("understudy_predictions_total")

    live.post("/predict", REQUEST)
    text = live.get("/metrics")

    assert live.series("understudy_predictions_total") == before + 1
    for name in (
        "understudy_stage_seconds_bucket",
        "understudy_feature_age_seconds_bucket",
        "understudy_requests_total",
    ):
        assert name in text


def test_the_true_age_of_every_views_data_is_shown_without_traffic(live: Served) -> None:
    ages = dict(re.findall(r'understudy_feature_data_age_seconds\{.*?view="(\w+)"\} ([\d.]+)', live.get("/metrics")))

    assert {view: float(age) for view, age in ages.items()} == dict.fromkeys(STORED, 600.0)


def load(url: str, count: int, width: int, bodies: list[bytes]) -> list[tuple[int, Any]]:
    """Send ``count`` requests, ``width`` at a time; returns status and answer of each."""

    async def run() -> list[tuple[int, Any]]:
        results: list[tuple[int, Any]] = []
        todo = iter(range(count))
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                for i in todo:
                    async with session.post(f"{url}/predict", data=bodies[i % len(bodies)], headers=headers) as answer:
                        results.append((answer.status, await answer.json()))

            await asyncio.gather(*(work() for _ in range(width)))
        return results

    return asyncio.run(run())


def test_under_concurrency_every_request_is_answered_and_logged_exactly_once(live: Served) -> None:
    logged = len(live.records("predictions"))

    results = load(live.url, 2000, 16, [json.dumps(REQUEST).encode()])

    assert {status for status, _ in results} == {200}
    ids = [answer["request_id"] for _, answer in results]
    records = {r["request_id"]: r for r in live.records("predictions")[logged:]}
    assert sorted(ids) == sorted(records)
    assert all(records[a["request_id"]]["prediction"] == a["prediction"] for _, a in results)
    live.wait_for("shadow", lambda r: r["request_id"] in records, count=2000)


def by_primary(live: Served) -> bool:
    """Whether the primary answers, and its breaker is closed."""
    role = live.post("/predict", REQUEST)[1]["role"]
    return bool(role == "primary" and live.json("/admin/breakers")["primary"]["state"] == "closed")


@pytest.mark.parametrize("role", ["shadow", "primary", "fallback"])
def test_a_killed_runner_fails_no_request_and_comes_back(live: Served, role: str) -> None:
    body = [json.dumps(REQUEST).encode()]
    killed = live.process(role)

    os.kill(killed, signal.SIGKILL)
    results = load(live.url, 300, 4, body)

    assert {status for status, _ in results} == {200}
    assert {a["role"] for _, a in results} <= {"primary", "fallback"}
    assert live.get("/readyz", ok_only=False) == 200
    live.wait_until(lambda: live.process(role, default=killed) != killed)
    live.wait_until(lambda: by_primary(live))
    live.wait_until(lambda: bool(live.json("/admin/roles")["roles"][role]["connected"]))


def test_a_stopped_primary_costs_its_deadline_and_no_more_until_it_goes_on(live: Served) -> None:
    pid = live.process("primary")
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.perf_counter()
        results = load(live.url, 40, 4, [json.dumps(REQUEST).encode()])
        spent = time.perf_counter() - begun
    finally:
        os.kill(pid, signal.SIGCONT)

    reasons = {a["fallback_reason"] for _, a in results}
    assert {(status, a["role"]) for status, a in results} == {(200, "fallback")}
    assert reasons == {"primary_timeout", "circuit_open"}
    assert spent < 20
    live.wait_until(lambda: by_primary(live))
    assert live.process("primary") == pid


def test_a_runner_that_stays_silent_is_killed_and_replaced(live: Served) -> None:
    pid = live.process("primary")
    kills = live.series("understudy_runner_kills_total")

    os.kill(pid, signal.SIGSTOP)

    live.wait_until(lambda: live.process("primary", default=pid) != pid)
    live.wait_until(lambda: by_primary(live))
    assert live.series("understudy_runner_kills_total") == kills + 1


def test_another_model_takes_over_under_load_and_fails_no_request(live: Served) -> None:
    models = live.bundle.settings.models_dir
    before = read_roles(models)
    moves: dict[Role, Seat | None] = {"primary": before.seats["shadow"], "shadow": before.seats["primary"]}
    results: list[tuple[int, Any]] = []
    body = [json.dumps(REQUEST).encode()]
    worker = threading.Thread(target=lambda: results.extend(load(live.url, 3000, 4, body)))

    worker.start()
    while len(results) < 1 and worker.is_alive() and not live.records("predictions"):
        time.sleep(0.01)
    moved = move_roles(models, before.revision, moves)
    live.wait_until(lambda: all(r["current"] for r in live.json("/admin/roles")["roles"].values()))
    after = live.post("/predict", REQUEST)[1]
    worker.join()
    move_roles(models, moved.revision, dict(before.seats))
    live.wait_until(lambda: live.post("/predict", REQUEST)[1]["model_version"] == before.seats["primary"].version)

    assert {(status, a["role"]) for status, a in results} == {(200, "primary")}
    assert after["model_version"] == before.seats["shadow"].version
    versions = [a["model_version"] for _, a in results]
    assert set(versions) <= {before.seats["primary"].version, before.seats["shadow"].version}


def test_an_altered_package_does_not_take_over_and_the_old_one_stays(live: Served) -> None:
    models = live.bundle.settings.models_dir
    before = read_roles(models)
    seat = before.seats["primary"]

    moved = move_roles(models, before.revision, {"primary": Seat("99", "0" * 64, seat.package)})
    live.wait_until(lambda: live.json("/admin/roles")["roles"]["primary"]["problem"] != "")
    answer = live.post("/predict", REQUEST)[1]
    told = live.json("/admin/roles")["roles"]["primary"]
    move_roles(models, moved.revision, {"primary": seat})
    live.wait_until(lambda: bool(live.json("/admin/roles")["roles"]["primary"]["current"]))

    assert (answer["role"], answer["model_version"]) == ("primary", seat.version)
    assert (told["current"], told["running"]["version"]) == (False, seat.version)
    assert "was altered" in told["problem"]


def test_an_operator_holds_the_primary_back_and_lets_it_go(live: Served) -> None:
    assert live.post("/admin/breakers", {"role": "primary", "mode": "forced_open"})[0] == 200
    held = live.post("/predict", REQUEST)[1]
    live.post("/admin/breakers", {"role": "primary", "mode": "auto"})

    assert (held["role"], held["fallback_reason"]) == ("fallback", "circuit_open")
    assert by_primary(live)


def test_the_service_is_not_ready_while_no_model_can_answer(live: Served) -> None:
    stopped = [live.process(role) for role in ("primary", "fallback")]
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)

    live.wait_until(lambda: live.get("/readyz", ok_only=False) == 503)
    status, answer = live.post("/predict", REQUEST)
    live.wait_until(lambda: live.get("/readyz", ok_only=False) == 200)

    assert status == 200
    assert (answer["role"], answer["confidence"]) == ("none", "none")
    live.wait_until(lambda: by_primary(live))


def test_an_answer_tells_how_long_each_stage_took(live: Served) -> None:
    headers = live.headers("/predict", REQUEST)

    names = [part.partition(";")[0] for part in headers["server-timing"].split(", ")]
    assert names == ["lookup", "validate", "primary", "post", "log", "total"]


def test_answers_forbid_to_be_kept_or_guessed_at(live: Served) -> None:
    headers = live.headers("/predict", REQUEST)

    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


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
        live.post("/predict", {**REQUEST, "request_id": "both"})
        both = live.wait_for("shadow", lambda r: r["request_id"] == "both", count=3)
        live.wait_until(lambda: bool(live.json("/admin/roles")["roles"]["shadow_2"]["connected"]))
        told = live.json("/admin/roles")["roles"]

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


def test_without_models_the_service_says_which_command_makes_them(tmp_path: Path) -> None:
    env = {**os.environ, "UNDERSTUDY_MODELS_DIR": str(tmp_path / "none"), "UNDERSTUDY_STATE_DIR": str(tmp_path)}

    done = subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "serve", "--port", "1"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert "run `make train` first" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_misspelt_setting_stops_the_service(tmp_path: Path) -> None:
    env = {**os.environ, "UNDERSTUDY_MODEL_DIR": str(tmp_path)}

    done = subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "serve", "--port", "1"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert "unknown setting UNDERSTUDY_MODEL_DIR" in done.stdout + done.stderr


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
