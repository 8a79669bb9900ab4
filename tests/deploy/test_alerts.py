"""Alerts are complete: routed, explained, tested in every situation, and reachable from what runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ROOT

FOLDER = ROOT / "deploy/prometheus"
RUNBOOK = ROOT / "docs/alerts.md"
RULES: list[dict[str, Any]] = [
    rule
    for path in sorted((FOLDER / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
TESTS = {path.name: yaml.safe_load(path.read_text())["tests"] for path in sorted((FOLDER / "tests").glob("*.yml"))}
WORLDS = {"absent.yml", "no-traffic.yml", "quiet.yml"}
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def expected(alert: str, files: set[str]) -> list[list[Any]]:
    """What the tests in some files expect of an alert."""
    groups = [group for name in files for group in TESTS[name]]
    entries = [entry for group in groups for entry in group.get("alert_rule_test", ())]
    return [entry["exp_alerts"] for entry in entries if entry["alertname"] == alert]


def test_there_is_an_alert_for_everything_that_was_asked_for() -> None:
    wanted = {
        "skew": "TrainingServingSkew", "drift": "FeatureDrift", "staleness": "FeatureDataStale",
        "missing features": "FeaturesMissing", "fallback share": "FallbackShare", "breaker open": "BreakerOpen",
        "latency": "LatencyBurnFast", "availability": "AvailabilityBurnFast", "mean shift": "PredictionMeanShift",
        "confidence collapse": "ConfidenceCollapse", "log drops": "LogDropped", "shadow losses": "ShadowLosses",
        "label lag": "LabelsLate", "monitoring job not run": "MonitoringJobLate", "runner down": "RunnerDown",
        "runner killed": "RunnerKilled", "no traffic": "NoTraffic", "target absent": "ServiceDown",
    }  # fmt: skip

    assert set(wanted.values()) <= set(ALERTS)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_is_routed_and_explained(alert: str) -> None:
    rule = ALERTS[alert]
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["labels"]["service"] == "understudy"
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{alert.lower()}"
    assert alert in headings


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_is_tested_firing_quiet_idle_and_without_series(alert: str) -> None:
    own = expected(alert, set(TESTS) - WORLDS)

    assert any(own), "nothing shows that it fires"
    assert [] in own, "nothing shows that it stays quiet just below its limit"
    assert expected(alert, {"quiet.yml"}) == [[], []]
    assert expected(alert, {"no-traffic.yml"}) == [[], []]
    assert len(expected(alert, {"absent.yml"})) == 4


def test_only_what_watches_for_absence_fires_without_series() -> None:
    fires = {alert for alert in ALERTS if any(expected(alert, {"absent.yml"}))}

    assert fires == {"ServiceDown", "MonitoringJobNeverRan"}


def test_recorded_series_are_named_level_metric_operation() -> None:
    names = [rule["record"] for rule in RULES if "record" in rule]

    assert [name for name in names if not re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z]+(_[a-z]+)*(\d+[mhd])?", name)] == []


def test_alerts_use_only_recordings_of_their_own_group() -> None:
    # Groups are evaluated at different moments; a share and the count that guards it must be of the same one.
    for path in sorted((FOLDER / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            own = {rule["record"] for rule in group["rules"] if "record" in rule}
            used = {n for rule in group["rules"] for n in re.findall(r"[a-z_]+:[a-z_]+:[a-z_0-9]+", rule["expr"])}
            assert used - own == set(), path.name


def test_the_documented_thresholds_bind() -> None:
    assert "understudy_drift_psi) > 0.2" in ALERTS["FeatureDrift"]["expr"]
    assert "sigmas)) > 2" in ALERTS["PredictionMeanShift"]["expr"]
    assert ALERTS["ConfidenceCollapse"]["expr"].count("> 0.3") == 2
    assert '{role="fallback"} > 0.1 ' in ALERTS["FallbackShare"]["expr"]


def test_compose_runs_four_pinned_images_on_loopback_only() -> None:
    services = COMPOSE["services"]

    assert set(services) == {"understudy", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert [port for port in service["ports"] if not port.startswith("127.0.0.1:")] == [], name
        if name != "understudy":
            assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_every_file_compose_mounts_is_there() -> None:
    mounts = [m.split(":")[0] for service in COMPOSE["services"].values() for m in service["volumes"]]

    missing = [m for m in mounts if m.startswith("./") and not (ROOT / "deploy" / m).exists()]

    assert missing == []
    assert {m for m in mounts if not m.startswith(".")} == set(COMPOSE["volumes"])


def test_prometheus_in_compose_finds_rules_and_alertmanager() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (target,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    mounts = dict(m.split(":")[:2] for m in COMPOSE["services"]["prometheus"]["volumes"])

    assert target.split(":")[0] in COMPOSE["services"]
    assert prometheus["rule_files"] == ["rules/*.yml"]
    assert mounts["./prometheus/rules"] == str(Path(mounts["./prometheus/prometheus.yml"]).parent / "rules")


def test_alertmanager_reads_its_secrets_from_files_that_compose_gives() -> None:
    configuration = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
    receivers = {receiver["name"]: receiver for receiver in configuration["receivers"]}

    (slack,) = receivers["slack"]["slack_configs"]
    (pagerduty,) = receivers["pagerduty"]["pagerduty_configs"]

    given = {f"/run/secrets/{name}" for name in COMPOSE["services"]["alertmanager"]["secrets"]}
    assert {slack["api_url_file"], pagerduty["routing_key_file"]} == given
    assert {"api_url", "routing_key", "service_key"}.isdisjoint({*slack, *pagerduty})


def test_inhibitions_name_alerts_that_exist() -> None:
    text = (ROOT / "deploy/alertmanager/alertmanager.yml").read_text()

    named = {n for match in re.findall(r'alertname!?=~?"([^"]+)"', text) for n in match.split("|")}

    assert named - set(ALERTS) == set()
