"""A real Prometheus scrapes the running service, two workers of it, and answers every panel of every dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from deploy.dashboards import FOLDER
from service.settings import ROOT
from tests.bundle import REQUEST, make_bundle
from tests.services.watching import CONFIGURATION, Prometheus, eventually, mailbox, program, prometheus
from tests.serving import Served, served

pytestmark = pytest.mark.services
# What the jobs write for Prometheus; their own tests hold them to it.
JOBS: dict[str, tuple[str, ...]] = {
    "understudy_monitor_last_run_timestamp_seconds": (),
    "understudy_monitor_window_end_timestamp_seconds": (),
    "understudy_monitor_alarms": (),
    "understudy_drift_psi": ("feature",),
    "understudy_drift_alarm": ("feature",),
    "understudy_prediction_mean_shift_sigmas": (),
    "understudy_low_confidence_share": (),
    "understudy_domain_auc": (),
    "understudy_importance_ndcg": (),
    "understudy_monitor_rule_alarm": ("rule",),
    "understudy_concept_drift_evidence": (),
    "understudy_retraining_due": (),
    "understudy_realized": ("measure", "windows"),
    "understudy_estimated": ("measure", "windows"),
    "understudy_estimate_trusted": (),
    "understudy_label_coverage": (),
    "understudy_label_watermark_timestamp_seconds": (),
    "understudy_labels_orphan": (),
    "understudy_label_lag_seconds": (),
    "understudy_skew_mismatch_share": (),
    "understudy_ship_last_success_timestamp_seconds": (),
    "understudy_ship_missing_records": ("log",),
    "understudy_job_file_damaged": ("file",),
}
# Declared by the service, with labels that come with what it serves.
LABELLED_LATER = {"understudy_split_total"}
NAME = re.compile(r"\b(?:understudy|bentoml)_[a-z_]+\b|\b(?:job|job_[a-z_]+|understudy):[a-z_]+:[a-z_0-9]+\b|\bup\b")
SENT = 40


def queries() -> dict[str, str]:
    """Every query of every panel, its variables replaced."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
                assert "$" not in expr, f"{panel['title']}: unknown variable in {expr}"
                found[f"{path.stem}: {panel['title']}: {target['refId']}"] = expr
    return found


def expressions() -> dict[str, str]:
    """Every expression of every rule."""
    rules = [
        rule
        for path in sorted((CONFIGURATION.parent / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    return {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("scraped")
    with served(make_bundle(folder), folder, UNDERSTUDY_WORKERS="2") as running:
        yield running


@pytest.fixture(scope="module")
def watching(live: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen all that was sent, the refused and the labelled, and what jobs measure."""
    registry = CollectorRegistry()
    for name, labels in JOBS.items():
        gauge = Gauge(name, "A job's.", labels, registry=registry)
        (gauge.labels(*("x" for _ in labels)) if labels else gauge).set(0.5)
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        mailbox(generate_latest(registry)) as jobs,
        prometheus(folder, live.url.removeprefix("http://"), jobs.url.removeprefix("http://")) as running,
    ):
        live.wait_for_runner("shadow")
        live.post("/predict", b"{")
        live.get("/nowhere/at/all", ok_only=False)
        live.post("/labels", {"request_id": "x", "label": 1, "known_at": "2013-10-01T11:00:00+00:00"})
        # In two parts, because what is counted before the first look has not increased.
        for sent in (SENT // 2, SENT):
            for i in range(SENT // 2):
                live.post("/predict", REQUEST if i % 4 else {**REQUEST, "carrier": "ZZ"})
            for counter in ("predictions", "shadow"):
                eventually(partial(counted, running, f"understudy_{counter}_total", sent))
        eventually(lambda: running.query("job:understudy_requests_slow:ratio_rate3d"))
        eventually(lambda: running.query("job_role:understudy_shadow_lost:ratio_increase1h"))
        eventually(lambda: running.query("job:understudy_score_unsure:ratio_rate1h"))
        eventually(lambda: running.query("job_feature_kind:understudy_feature_violations:ratio_rate10m"))
        yield running


def counted(prometheus: Prometheus, counter: str, sent: int) -> bool:
    """Whether Prometheus has seen everything."""
    return prometheus.total(counter) == sent


def test_the_configuration_is_valid() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(CONFIGURATION)], capture_output=True, check=False
    )

    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_compose_scrapes_the_port_it_serves() -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    for scrape in yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]:
        (target,) = scrape["static_configs"][0]["targets"]

        name, port = target.split(":")
        assert name in compose["services"]
        assert port in compose["services"][name]["command"]


def test_the_series_follow_prometheus_conventions(live: Served) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=live.get("/metrics"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_real_prometheus_reads_every_series_of_the_service(watching: Prometheus) -> None:
    total = watching.total

    assert total('up{job="understudy"}') == 1
    assert total('understudy_predictions_total{role="primary",confidence="normal"}') == 30
    assert total('understudy_fallbacks_total{reason="features_invalid"}') == 10
    assert total('understudy_feature_violations_total{feature="carrier_record",kind="missing"}') == 10
    assert total('understudy_requests_total{endpoint="predict",status="400"}') == 1
    assert total('understudy_shadow_sampled_total{role="shadow"}') == SENT
    assert total('understudy_stage_seconds_count{stage="lookup"}') == SENT
    assert total('understudy_feature_age_seconds_count{view="origin_weather"}') == SENT


def test_what_two_workers_counted_is_one_sum_and_both_took_part(live: Served, watching: Prometheus) -> None:
    pids = {entry["metric"]["pid"] for entry in watching.query("understudy_breaker_state")}

    assert len(pids) == 2
    assert len({path.name for path in (live.bundle.settings.log_dir / "predictions").glob("*.jsonl")}) == 2
    assert watching.total('bentoml_service_request_total{endpoint="/predict",http_response_code="200"}') == SENT
    assert watching.total('understudy_requests_total{endpoint="predict",status="200"}') == SENT
    assert watching.total('understudy_runner_up{role="primary"}') == 1


def test_labels_are_bounded_whatever_is_asked_for(live: Served, watching: Prometheus) -> None:
    endpoints = set(watching.get("label/endpoint/values"))

    assert endpoints <= {"predict", "predict_batch", "labels", "other", "/predict", "/predict_batch", "/labels"}
    assert "nowhere" not in live.get("/metrics")
    assert not [name for name in watching.get("label/__name__/values") if name.startswith("feast_")]
    assert not [name for name in watching.get("labels") if name.startswith("__tmp")]


@pytest.mark.parametrize("where", sorted(queries()))
def test_a_panels_query_names_series_that_exist_and_is_understood(where: str, watching: Prometheus) -> None:
    expr = queries()[where]
    there = set(watching.get("label/__name__/values"))

    watching.get("query_range", query=expr, start="0", end="60", step="15")
    assert set(NAME.findall(expr)) - there - LABELLED_LATER == set()


@pytest.mark.parametrize("rule", sorted(expressions()))
def test_a_rule_names_series_that_exist(rule: str, watching: Prometheus) -> None:
    there = set(watching.get("label/__name__/values"))

    assert set(NAME.findall(expressions()[rule])) - there - LABELLED_LATER == set()


def test_a_healthy_service_fires_nothing(watching: Prometheus) -> None:
    provoked = {
        # A quarter of the requests came with a key nobody feeds, and the jobs' gauges are made up.
        "FallbackShare", "FeaturesMissing", "TrainingServingSkew", "DatasetDrift", "ConfidenceCollapse",
        "ImportanceUnstable", "LabelsLate", "MonitoringJobLate", "LogShippingLate", "ShippedRecordsMissing",
    }  # fmt: skip

    assert watching.firing() - provoked == set()


def test_a_killed_worker_takes_its_gauges_and_leaves_its_counts(live: Served, watching: Prometheus) -> None:
    counted = live.series("understudy_predictions_total")
    pids = set(re.findall(r'understudy_breaker_state{pid="(\d+)"', live.get("/metrics")))
    killed = min(pids)

    os.kill(int(killed), 9)

    def replaced() -> bool:
        now = set(re.findall(r'understudy_breaker_state{pid="(\d+)"', live.get("/metrics")))
        return len(now) == 2 and killed not in now

    live.wait_until(replaced)
    assert live.series("understudy_predictions_total") == counted


def test_the_configuration_names_no_machine() -> None:
    assert "127.0.0.1" not in CONFIGURATION.read_text()
    assert "localhost" not in CONFIGURATION.read_text()
