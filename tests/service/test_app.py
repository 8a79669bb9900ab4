"""The real thing: `bentoml serve` on a small bundle, asked over HTTP, and hurt."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.answers import REFUSALS
from service.roles import Role, Seat, move_roles, read_roles
from tests.bundle import NOW, REQUEST, STORED, make_bundle
from tests.serving import Served, load, served

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


def test_a_browsers_request_goes_bentomls_way_to_the_same_answer(live: Served) -> None:
    usual = live.headers("/predict", REQUEST)
    long, long_headers = live.asked("/predict", REQUEST, {"Origin": "https://elsewhere.example"})

    _, short = live.post("/predict", REQUEST)
    assert {**long, "request_id": ""} == {**short, "request_id": ""}
    assert "x-bentoml-request-id" not in usual
    for name in ("content-type", "x-content-type-options", "cache-control"):
        assert usual[name] == long_headers[name]


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
    live.wait_for_runner(role)


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
