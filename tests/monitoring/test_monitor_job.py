"""The drift job: what it finds, what it leaves alone, and what it says about bad input."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.drift_store import Window, read_windows
from tests.monitoring.jobs import MonitorJob
from tests.monitoring.monitored import START, Monitored, monitored, rows

DAYS, A_DAY = 21, 150


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("monitored"))


@pytest.fixture
def model(packaged: Monitored) -> Monitored:
    packaged.clear()
    return packaged


@pytest.fixture
def job(model: Monitored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> MonitorJob:
    return MonitorJob(model, monkeypatch, capsys, DAYS)


def traffic(model: Monitored, seed: int = 9, days: int = DAYS) -> pd.DataFrame:
    return rows(model.contract, seed, START, days, A_DAY)


def stored(model: Monitored) -> tuple[Window, ...]:
    return read_windows(model.settings.state_dir / "monitoring").windows


def test_traffic_like_training_raises_no_alarm(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))

    code, last = job()

    assert code == 0
    assert (last["rows"], last["windows"], last["judged_now"], last["no_data"]) == (DAYS * A_DAY, DAYS, DAYS, 0)
    assert (last["alarms"], last["standing"]) == (0, [])
    assert {"rows", "seconds", "peak_mb", "alarms"} <= set(last)


def test_planted_faults_are_found_and_named(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    late = frame["event_timestamp"] >= pd.Timestamp(START + timedelta(days=17))
    frame.loc[late, "dewp"] += 4.0
    frame.loc[late, "humid"] = None
    frame.loc[late & (frame.index % 3 == 0), "visib"] = None
    frame.loc[late & (frame.index % 10 == 0), "carrier"] = "ZZ"
    model.log(model.lines(frame))

    code, last = job("--fail-on-alarm")

    assert code == 3
    assert set(last["standing"]) == {
        "drift:dewp",
        "missing:humid",
        "nulls:visib",
        "new_category:carrier",
        "drift:carrier",
    }
    assert {w.start for w in stored(model) if w.alarms} == {START + timedelta(days=d) for d in range(17, 21)}


def test_one_odd_day_is_told_once(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    day = (frame["event_timestamp"] - pd.Timestamp(START)).dt.days
    frame.loc[day == 12, "dewp"] += 40.0
    model.log(model.lines(frame))

    job()

    assert {(w.start - START).days: w.alarms for w in stored(model) if w.alarms} == {12: ("drift:dewp",)}


def test_a_shift_of_the_predictions_is_found(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    frame.loc[frame["event_timestamp"] >= pd.Timestamp(START + timedelta(days=19)), "temp"] += 2.5
    model.log(model.lines(frame))

    _, last = job()

    assert {"mean_shift", "mean_shift_lasting", "drift:temp"} <= set(last["standing"])


def test_a_finished_window_is_judged_once(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))
    _, first = job(days=10)
    before = stored(model)

    _, second = job()
    _, third = job()

    assert (first["judged_now"], second["judged_now"], third["judged_now"]) == (10, DAYS - 10, 0)
    assert stored(model)[:10] == before


def test_day_by_day_or_all_at_once_gives_the_same(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    frame.loc[frame["event_timestamp"] >= pd.Timestamp(START + timedelta(days=12)), "temp"] += 1.0
    model.log(model.lines(frame))
    for day in (3, 8, 9, 15, DAYS):
        job(days=day)
    piecemeal = stored(model)

    job("--again")

    assert stored(model) == piecemeal


def test_results_outlive_the_log(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))
    job()
    before = stored(model)
    model.log([])

    code, last = job("--again", days=DAYS + 2)

    assert code == 0
    assert stored(model)[:DAYS] == before
    assert (last["judged_now"], last["no_data"]) == (0, 2)


def test_quiet_and_empty_windows_are_no_data(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    day = (frame["event_timestamp"] - pd.Timestamp(START)).dt.days
    quiet = frame[(day != 5) & ((day != 6) | (frame.index % 10 == 0))]
    model.log(model.lines(quiet))

    code, last = job()

    found = {w.start: (w.status, w.reason) for w in stored(model)}
    assert code == 0
    assert last["no_data"] == 2
    assert found[START + timedelta(days=5)] == ("no data", "no requests")
    assert found[START + timedelta(days=6)] == ("no data", "15 requests, needs 100")


def test_a_window_in_which_models_change_is_split(model: Monitored, job: MonitorJob, tmp_path: Path) -> None:
    other = monitored(model.settings.models_dir.parent, seed=2)
    frame = traffic(model)
    moved = frame["event_timestamp"] >= pd.Timestamp(START + timedelta(days=10, hours=12))
    lines = model.lines(frame[~moved]) + other.lines(frame[moved])
    # A fallback's answer belongs to the primary that was at work.
    lines[-1] |= {"role": "fallback", "model_digest": "f" * 64}
    model.log(lines)

    code, last = job("--least-rows", "50")

    split = [w for w in stored(model) if w.start == START + timedelta(days=10)]
    assert code == 0
    assert {(w.digest, w.rows) for w in split} == {(model.digest, 75), (other.digest, 75)}
    assert stored(model)[-1].digest == other.digest
    assert (stored(model)[-1].rows, stored(model)[-1].answered) == (A_DAY, A_DAY - 1)
    assert last["alarms"] == 0


def test_records_of_the_future_and_of_long_ago_are_counted_and_set_aside(model: Monitored, job: MonitorJob) -> None:
    lines = model.lines(traffic(model))
    lines[0]["at"] = START + timedelta(days=400)
    lines[1]["at"] = START - timedelta(days=15000)
    lines[2]["request_id"] = lines[3]["request_id"]
    model.log(lines)

    code, last = job()

    page = (model.settings.state_dir / "reports" / "monitor.html").read_text()
    assert code == 0
    assert last["windows"] == DAYS
    assert stored(model)[0].rows == A_DAY - 3
    assert "in a window that is not over" not in page
    assert "1 predictions dated in the future" in page
    assert "1 predictions older than --days" in page
    assert "1 predictions repeating a request id" in page


def test_a_running_window_waits(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))

    _, last = job(days=7.5)

    assert last["windows"] == 7


def test_records_that_come_late_are_said_and_judged_on_demand(model: Monitored, job: MonitorJob) -> None:
    lines = model.lines(traffic(model))
    model.log([line for i, line in enumerate(lines) if i % 5])
    job()
    model.log(lines)

    job()
    page = (model.settings.state_dir / "reports" / "monitor.html").read_text()
    _, again = job("--again")

    assert f"{DAYS * A_DAY // 5} predictions arrived after their window was judged" in page
    assert again["judged_now"] == DAYS
    assert stored(model)[0].rows == A_DAY


def test_a_model_whose_package_is_gone_fails_the_run_and_is_tried_again(model: Monitored, job: MonitorJob) -> None:
    frame = traffic(model)
    known = frame["event_timestamp"] < pd.Timestamp(START + timedelta(days=10))
    model.log(model.lines(frame[known]) + model.lines(frame[~known], digest="e" * 64))

    code, last = job()

    assert code == 1
    assert last["judged_now"] == 10
    assert f"windows of model {'e' * 12} cannot be judged" in job.err
    assert {w.digest for w in stored(model)} == {model.digest, None}


@pytest.mark.parametrize(
    ("changes", "told", "silent"),
    [
        ({"baseline": {}}, "baseline.json has no predictions per day", {"mean_shift", "low_confidence"}),
        (
            {"baseline": {"predictions": {"counts": "x"}, "importance": {"ranking": [{}]}}},
            "has no importance",
            {"mean_shift", "low_confidence"},
        ),
        ({"reference": b"PAR1PAR1"}, "reference.parquet cannot be read", set()),
    ],
)
def test_what_a_damaged_yardstick_lacks_is_no_data_with_its_reason(
    model: Monitored, job: MonitorJob, changes: dict[str, Any], told: str, silent: set[str]
) -> None:
    damaged = monitored(model.settings.models_dir.parent, seed=3, changes=changes)
    model.log(damaged.lines(traffic(model)))

    code, last = job()

    assert code == 0
    assert last["alarms"] == 0
    assert told in (model.settings.state_dir / "reports" / "monitor.html").read_text()
    assert silent <= {check.rule for check in stored(model)[-1].checks if check.outcome == "no data"}
    assert bool(stored(model)[-1].columns) == bool(silent)


def test_a_column_that_left_the_contract_is_judged_for_the_model_that_takes_it(
    model: Monitored, job: MonitorJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feature_repo import features
    from service import definitions

    model.log(model.lines(traffic(model)))
    whole = definitions.contracts(features)["primary"]
    fields = tuple(f for f in whole.fields if f.name != "dewp")
    monkeypatch.setattr(
        definitions, "contracts", lambda _: {"primary": type(whole)(**{**vars(whole), "fields": fields})}
    )

    code, _ = job()

    assert code == 0
    assert "dewp" in {column.feature for column in stored(model)[-1].columns}
    page = (model.settings.state_dir / "reports" / "monitor.html").read_text()
    assert "dewp is not in today&#39;s contract" in page


def test_nothing_at_all_says_what_to_do(model: Monitored, job: MonitorJob) -> None:
    code, last = job()

    assert (code, last) == (2, {})
    assert "no predictions in" in job.err
    assert "run `make serve`" in job.err


def test_a_torn_line_of_results_is_judged_again(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))
    job()
    path = model.settings.state_dir / "monitoring" / "windows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:40]]) + "\n")

    _, last = job()

    assert last["judged_now"] == 1
    assert path.read_text().splitlines() == lines


def test_a_redacted_feature_is_neither_missing_nor_judged(model: Monitored, job: MonitorJob) -> None:
    lines = model.lines(traffic(model))
    for line in lines:
        line["vector"]["humid"] = None
        line["redacted"] = ["humid"]
    model.log(lines)

    code, last = job()

    (newest,) = stored(model)[-1:]
    assert (code, last["alarms"]) == (0, 0)
    assert "humid" not in {column.feature for column in newest.columns}
    assert "dewp" in {column.feature for column in newest.columns}
    assert {c.text for w in stored(model) for c in w.checks if c.rule == "domain"} == {
        "the log holds no values of humid (redacted)"
    }


def test_the_series_are_those_of_the_newest_window(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model)))
    _, last = job()

    text = (model.settings.state_dir / "monitoring" / "monitor.prom").read_text()

    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    end = START + timedelta(days=DAYS)
    assert found["understudy_monitor_window_end_timestamp_seconds"][0].value == end.timestamp()
    assert found["understudy_monitor_alarms"][0].value == len(last["standing"])
    assert {s.labels["feature"] for s in found["understudy_drift_psi"]} == {*model.contract.features, "prediction"}
    assert set(found) == {
        "understudy_monitor_last_run_timestamp_seconds", "understudy_monitor_window_end_timestamp_seconds",
        "understudy_monitor_alarms", "understudy_monitor_rule_alarm", "understudy_drift_psi", "understudy_drift_alarm",
        "understudy_prediction_mean_shift_sigmas", "understudy_low_confidence_share", "understudy_domain_auc",
        "understudy_importance_ndcg",
    }  # fmt: skip


def test_a_business_figure_is_watched(model: Monitored, job: MonitorJob, tmp_path: Path) -> None:
    model.log(model.lines(traffic(model)))
    figures = tmp_path / "figures.csv"
    lines = [f"{START + timedelta(days=d, hours=3):%Y-%m-%dT%H:%M:%S},{100 + d % 4}" for d in range(DAYS - 1)]
    figures.write_text("\n".join(["at,value", *lines, f"{START + timedelta(days=DAYS - 1):%Y-%m-%d},40"]))

    _, last = job("--business", str(figures))
    figures.write_text("when,what\n")
    code, _ = job("--business", str(figures))

    assert last["standing"] == ["business"]
    assert code == 2
    assert "needs at and value" in job.err


def test_the_page_loads_nothing_and_evidently_stands_beside_it(model: Monitored, job: MonitorJob) -> None:
    model.log(model.lines(traffic(model, days=8)))

    job(days=8, evidently=True)

    reports = model.settings.state_dir / "reports"
    page = (reports / "monitor.html").read_text()
    assert "evidently_monitor.html" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    tests = json.loads((reports / "evidently_monitor.json").read_text())
    assert "ks" in json.dumps(tests).lower()
    assert json.loads((reports / "monitor.json").read_text())["windows"][-1]["status"] == "judged"
