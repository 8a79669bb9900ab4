"""The status page: every tile in every state, and honesty about what is missing, damaged or old."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitoring import status as job
from monitoring.degradation import Check
from monitoring.drift_store import ColumnResult, Window
from monitoring.performance_run import Stretch
from monitoring.status_tiles import Measured, Played, Source, Tile, Traffic, status
from tests.bundle import make_bundle, settings_in

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LAST = NOW - timedelta(hours=6)
DAYS = timedelta(days=2)
RECORD = {
    "environment": {"commit": "c", "dirty": False, "lock": "l"},
    "data_digest": "d",
    "seed": 7,
    "as_of": "2024-04-01",
}


def column(*alarms: str) -> ColumnResult:
    return ColumnResult("temp", 1, 500, 0.1, 0.1, 0.1, 0.2, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, alarms)


def check(rule: Any, outcome: Any = "ok", value: float = 1.0, limit: float = 10.0) -> Check:
    return Check(rule, outcome, value, limit, f"{rule} {outcome}")


def window(*checks: Check, columns: tuple[ColumnResult, ...] = (column(),)) -> tuple[Window, ...]:
    return (Window(LAST - timedelta(days=1), LAST, "p", "1", 500, 500, "judged", columns=columns, checks=checks),)


def skew(**changes: Any) -> Source:
    parity = {"exact": 100, "compared": 100, **changes}
    return Source("skew.json", {"parity": parity, "scores": {"equal": 100, "compared": changes.get("scored", 100)},
                                "shifts": changes.get("shifts", []), "last": LAST.isoformat()})  # fmt: skip


TRUTH = Stretch(
    LAST - timedelta(days=1), LAST, 1, "p", "1", "primary", 500, 500, {"auc": (0.7, 0.6, 0.8)}, evidence=1.0
)
WELL = Measured(
    skew(), window(check("latency", value=5.0, limit=50.0), check("mean_shift")), "", (TRUTH,),
    (Played("primary", "1", "p", RECORD), Played("fallback", "2", "f", RECORD)), "", Traffic(LAST, 1000, 0, 0, 0, 0, 0),
)  # fmt: skip
TRAFFIC = WELL.traffic or Traffic(LAST, 1, 0, 0, 0, 0, 0)


def tile(measured: Measured, name: str, now: datetime = NOW) -> Tile:
    return next(t for t in status(measured, now, DAYS).tiles if t.name == name)


def checked(*checks: Check) -> Measured:
    return replace(WELL, windows=window(*checks))


def columned(*alarms: str) -> Measured:
    return replace(WELL, windows=window(columns=(column(*alarms),)))


def busy(traffic: Traffic) -> Measured:
    return replace(WELL, traffic=traffic)


def playing(*played: Played) -> Measured:
    return replace(WELL, played=played)


def test_seven_tiles_in_order_all_well() -> None:
    found = status(WELL, NOW, DAYS)

    assert [t.name for t in found.tiles] == [
        "skew", "drift", "features", "latency", "degradation", "pipeline", "fallback",
    ]  # fmt: skip
    assert {t.state for t in found.tiles} == {"ok"}
    assert found.tiles[0].age == timedelta(hours=6)


@pytest.mark.parametrize(
    ("measured", "name", "state"),
    [
        (replace(WELL, skew=skew(exact=99)), "skew", "alarm"),
        (replace(WELL, skew=skew(scored=101)), "skew", "alarm"),
        (replace(WELL, skew=skew(shifts=[{"feature": "temp", "alarm": "missing"}])), "skew", "alarm"),
        (replace(WELL, skew=skew(scored=0)), "skew", "attention"),
        (replace(WELL, skew=skew(compared=0)), "skew", "no data"),
        (replace(WELL, skew=Source("skew.json", {"parity": 3})), "skew", "no data"),
        (replace(WELL, skew=Source("skew.json", None, "missing")), "skew", "no data"),
        (columned("drift"), "drift", "alarm"),
        (columned("nulls"), "drift", "alarm"),
        (columned("new_category"), "drift", "attention"),
        (replace(WELL, windows_why="2 damaged lines"), "drift", "attention"),
        (checked(check("domain", "alarm")), "drift", "alarm"),
        (replace(WELL, windows=()), "drift", "no data"),
        (replace(WELL, windows=window(columns=())), "drift", "no data"),
        (busy(replace(TRAFFIC, stale=51)), "features", "alarm"),
        (busy(replace(TRAFFIC, stale=45)), "features", "attention"),
        (busy(replace(TRAFFIC, missing=51)), "features", "attention"),
        (busy(replace(TRAFFIC, future=1)), "features", "alarm"),
        (replace(WELL, traffic=None), "features", "no data"),
        (checked(check("latency", "alarm", 60.0, 50.0)), "latency", "alarm"),
        (checked(check("latency", "ok", 45.0, 50.0)), "latency", "attention"),
        (checked(check("latency", "no data")), "latency", "no data"),
        (checked(), "latency", "no data"),
        (checked(check("mean_shift"), check("low_confidence", "alarm")), "degradation", "alarm"),
        (replace(WELL, stretches=(replace(TRUTH, evidence=501.0),)), "degradation", "alarm"),
        (replace(WELL, stretches=()), "degradation", "attention"),
        (checked(), "degradation", "no data"),
        (playing(Played("primary", "1", "p", None, "damaged")), "pipeline", "alarm"),
        (playing(Played("primary", "1", "p", {**RECORD, "seed": None})), "pipeline", "attention"),
        (playing(Played("primary", "1", "p", {**RECORD, "gate_passed_over": "x"})), "pipeline", "attention"),
        (playing(), "pipeline", "no data"),
        (playing(Played("primary", "1", "p", RECORD)), "fallback", "alarm"),
        (playing(Played("fallback", "2", "f", None, "damaged")), "fallback", "alarm"),
        (busy(replace(TRAFFIC, fallback=101)), "fallback", "alarm"),
        (busy(replace(TRAFFIC, fallback=60)), "fallback", "attention"),
        (busy(replace(TRAFFIC, unanswered=1)), "fallback", "alarm"),
        (replace(WELL, traffic=None), "fallback", "no data"),
    ],
)  # fmt: skip
def test_each_tile_says_its_state(measured: Measured, name: str, state: str) -> None:
    assert tile(measured, name).state == state


@pytest.mark.parametrize("name", ["skew", "drift", "features", "latency", "degradation", "fallback"])
def test_an_old_measurement_is_no_data_since_then(name: str) -> None:
    found = tile(WELL, name, NOW + DAYS)

    assert found.state == "no data"
    assert found.detail.startswith("no data since 2024-04-30 18:00 UTC (was ok")


def test_a_measurement_after_the_clocks_now_is_no_data() -> None:
    found = tile(WELL, "skew", NOW - timedelta(days=5))

    assert found.state == "no data"
    assert "after the clock's now" in found.detail


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def made(own: Any, *arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(job, "settings", lambda: own)
        code = job.main(arguments)
        page = (own.state_dir / "reports/status.html").read_text()
        return code, json.loads(capsys.readouterr().out.splitlines()[-1]), page

    return made


def test_with_nothing_there_every_tile_is_no_data_and_the_page_is_made(run: Run, tmp_path: Any) -> None:
    code, last, page = run(settings_in(tmp_path, clock=NOW.isoformat()), "--strict")

    assert code == 0
    assert set(last["tiles"].values()) == {"no data"}
    assert "http" not in page.replace("http-equiv", "")


def test_a_real_bundle_and_damaged_inputs_are_told_of(run: Run, tmp_path: Any) -> None:
    bundle = make_bundle(tmp_path, clock=NOW.isoformat())
    own = bundle.settings
    line = {"request_id": "a", "at": LAST.isoformat(), "role": "primary", "event_times": {}, "violations": [], "seq": 1}
    (own.log_dir / "predictions").mkdir(parents=True)
    (own.log_dir / "predictions/w-1.jsonl").write_text(json.dumps(line) + "\n{torn\n")
    (own.state_dir / "reports").mkdir()
    (own.state_dir / "reports/compare.json").write_text("{")
    (own.state_dir / "monitoring").mkdir(exist_ok=True)
    (own.state_dir / "monitoring/windows.jsonl").write_text("{\n")

    code, last, page = run(own)

    assert code == 0
    assert (last["tiles"]["features"], last["tiles"]["fallback"], last["tiles"]["drift"]) == ("ok", "ok", "no data")
    assert "compare.json: damaged" in page
    assert "1 damaged lines in windows.jsonl" in page


def test_feature_values_from_after_the_request_alarm(run: Run, tmp_path: Any) -> None:
    own = make_bundle(tmp_path, clock=NOW.isoformat()).settings
    late = (LAST + timedelta(minutes=5)).isoformat()
    lines = [
        {"request_id": str(n), "at": LAST.isoformat(), "role": "primary", "event_times": {"v": at, "w": None},
         "violations": [{"feature": "x", "kind": "stale", "message": ""}]}
        for n, at in enumerate((late, LAST.isoformat()))
    ]  # fmt: skip
    (own.log_dir / "predictions").mkdir(parents=True)
    (own.log_dir / "predictions/w-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    _, last, page = run(own)

    assert last["tiles"]["features"] == "alarm"
    assert "1 requests were given values from after their own moment; 2 of 2 requests had stale features" in page


def test_strict_fails_on_an_alarm(run: Run, tmp_path: Any) -> None:
    own = make_bundle(tmp_path, clock=NOW.isoformat()).settings
    next(path for path in own.models_dir.glob("packages/*/manifest.json")).write_text("{}")

    assert run(own, "--strict")[0] == 1
    assert run(own)[0] == 0


def test_a_service_that_is_away_is_no_data(run: Run, tmp_path: Any) -> None:
    _, _, page = run(settings_in(tmp_path, clock=NOW.isoformat()), "--url", "http://127.0.0.1:9")

    assert "Service, readyz: no data" in page
