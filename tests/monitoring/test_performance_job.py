"""Performance in the drift job: what it says with labels, without, late, and after the log is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.performance_run import Stretch
from monitoring.performance_store import FILE, SERIES, merged, read_stretches
from tests.monitoring.jobs import MonitorJob
from tests.monitoring.logs import Logs
from tests.monitoring.monitored import START, Monitored, monitored, rows

DAYS, A_DAY = 30, 150
DAY = timedelta(days=1)
Job = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("performance"))


@pytest.fixture
def model(packaged: Monitored) -> Monitored:
    packaged.clear()
    return packaged


@pytest.fixture
def job(model: Monitored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    monitor = MonitorJob(model, monkeypatch, capsys, DAYS)

    def run() -> dict[str, Any]:
        code, last = monitor()
        assert code == 0
        return last

    return run


def traffic(model: Monitored) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    frame = rows(model.contract, 9, START, DAYS, A_DAY)
    return model.lines(frame), frame


def log(
    model: Monitored, lines: list[dict[str, Any]], labels: pd.Series | None, delay: timedelta = 5 / 24 * DAY
) -> None:
    told = [] if labels is None else [
        {"request_id": line["request_id"], "label": float(label), "known_at": at, "at": at}
        for line, label in zip(lines, labels, strict=True)
        for at in [line["at"] + delay]
    ]  # fmt: skip
    for path in model.settings.log_dir.glob("*/*"):
        path.unlink()
    Logs(lines, labels=told).write(model.settings.log_dir)


def stretches(model: Monitored, span: int) -> list[Stretch]:
    found, _ = read_stretches(model.settings.state_dir / "monitoring")
    return [s for s in found if s.span == span and s.role == "primary"]


def page(model: Monitored) -> str:
    return (model.settings.state_dir / "reports" / "monitor.html").read_text()


def series(model: Monitored, file: str) -> dict[str, float]:
    text = (model.settings.state_dir / "monitoring" / file).read_text()
    return {
        sample.name + "".join(f":{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_before_any_label_there_are_estimates_only(model: Monitored, job: Job) -> None:
    lines, _ = traffic(model)
    log(model, lines, None)

    last = job()

    assert last["realized_auc"] is None
    assert 0.5 < last["estimated_auc"] < 1
    assert all(s.estimated and not s.realized for s in stretches(model, 1))
    assert stretches(model, 1)[0].realized_reason == "0 labels, needs 100"
    assert "No truth yet. Estimated from the scores alone" in page(model)
    assert "understudy_realized:auc:28" not in series(model, SERIES)


def test_with_labels_both_stand_side_by_side(model: Monitored, job: Job) -> None:
    lines, frame = traffic(model)
    log(model, lines, frame["label"])

    last = job()

    found = series(model, SERIES)
    assert abs(last["estimated_auc"] - last["realized_auc"]) < 0.03
    assert last["concept_drift"] is False
    assert found["understudy_realized:auc:28"] == pytest.approx(last["realized_auc"], abs=1e-4)
    assert found["understudy_estimate_trusted"] == 1.0
    assert series(model, "labels.prom")["understudy_label_coverage"] == 1.0
    assert "By its truth: AUC" in page(model)
    assert "Concept drift" not in page(model)
    told = json.loads((model.settings.state_dir / "reports" / "monitor.json").read_text())["performance"]
    assert told["labels"]["labelled"] == DAYS * A_DAY
    assert {s["column"] for s in told["slices"]} <= set(model.contract.slices)


def test_labels_that_come_later_fill_windows_judged_before(model: Monitored, job: Job) -> None:
    lines, frame = traffic(model)
    log(model, lines, None)
    job()
    log(model, lines, frame["label"])

    last = job()

    assert last["judged_now"] == 0
    assert all(s.realized for s in stretches(model, 1))


def test_a_truth_that_turns_is_concept_drift(model: Monitored, job: Job) -> None:
    lines, frame = traffic(model)
    late = frame["event_timestamp"] >= pd.Timestamp(START + 10 * DAY)
    log(model, lines, frame["label"].where(~late, 1 - frame["label"]))

    last = job()

    drifted = [s.start for s in stretches(model, 1) if s.drifted]
    assert last["concept_drift"] is True
    assert START + 10 * DAY <= drifted[0] <= START + 20 * DAY
    assert "Concept drift: the truth has left the estimate for good" in page(model)


def test_what_was_measured_outlives_the_log(model: Monitored, job: Job) -> None:
    lines, frame = traffic(model)
    log(model, lines, frame["label"])
    job()
    before = stretches(model, 7)
    log(model, lines[-A_DAY:], None)

    job()

    assert stretches(model, 7)[:-1] == before[:-1]


def test_a_promotion_inside_a_window_splits_it(model: Monitored, job: Job) -> None:
    other = monitored(model.settings.models_dir.parent, seed=2)
    frame = rows(model.contract, 9, START, DAYS, 2 * A_DAY)
    moved = frame["event_timestamp"] >= pd.Timestamp(START + 10.5 * DAY)
    log(model, model.lines(frame[~moved]) + other.lines(frame[moved]), frame["label"])

    job()

    split = [s for s in stretches(model, 1) if s.start == START + 10 * DAY]
    assert {(s.digest, s.rows) for s in split} == {(model.digest, A_DAY), (other.digest, A_DAY)}
    assert all(s.realized and s.estimated for s in split)


def test_a_sample_without_predictions_gives_truth_but_no_estimate_and_says_why(
    packaged: Monitored, model: Monitored, job: Job
) -> None:
    old = monitored(model.settings.models_dir.parent, seed=4, changes={"reference": b"PAR1PAR1"})
    frame = rows(model.contract, 9, START, DAYS, A_DAY)
    log(model, old.lines(frame), frame["label"])

    last = job()

    assert last["estimated_auc"] is None
    assert last["realized_auc"] is not None
    assert "there is no reference sample; run `make train`" in page(model)


def test_a_torn_line_of_measurements_is_left_out_and_said(model: Monitored, job: Job) -> None:
    lines, frame = traffic(model)
    log(model, lines, frame["label"])
    job()
    path = model.settings.state_dir / "monitoring" / FILE
    path.write_text(path.read_text()[:-40])

    job()

    assert "1 damaged lines in performance.jsonl" in page(model)
    assert len(stretches(model, 1)) == DAYS


def test_measurements_on_fewer_requests_do_not_replace_better_ones() -> None:
    whole = Stretch(START, START + DAY, 1, "m", "1", "primary", 100, 90)
    part = Stretch(START, START + DAY, 1, "m", "1", "primary", 40, 40)
    later = Stretch(START, START + DAY, 1, "m", "1", "primary", 100, 100)

    assert merged([whole], [part]) == (whole,)
    assert merged([whole], [later]) == (later,)
    assert merged([], [part]) == (part,)
