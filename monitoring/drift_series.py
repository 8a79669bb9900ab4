"""The newest window as Prometheus series, in the text format of a file: ``<state>/monitoring/monitor.prom``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.drift_judge import SPAN
from monitoring.drift_store import Window

FILE = "monitor.prom"


def write_series(folder: Path, windows: Sequence[Window], now: datetime) -> None:
    """Write the file anew; what the newest judged window has no data for has no series."""
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            Gauge(f"understudy_{name}", text, registry=registry).set(value)

    gauge("monitor_last_run_timestamp_seconds", "When the drift job last ran.", now.timestamp())
    judged = [window for window in windows if window.status == "judged"]
    if judged:
        newest = judged[-1]
        gauge("monitor_window_end_timestamp_seconds", "End of the newest judged window.", newest.end.timestamp())
        gauge("monitor_alarms", "Alarms in the newest judged window.", len(newest.alarms))
        _columns(registry, newest)
        checks = {check.rule: check.value for check in newest.checks}
        gauge("prediction_mean_shift_sigmas", "Distance of the mean prediction.", checks.get("mean_shift"))
        gauge("low_confidence_share", "Share of predictions between 0.4 and 0.6.", newest.low)
        raised = Gauge("understudy_monitor_rule_alarm", "Whether a rule is in alarm.", ["rule"], registry=registry)
        for check in newest.checks:
            if check.outcome != "no data":
                raised.labels(check.rule).set(float(check.outcome == "alarm"))
        # These two are judged once a stretch.
        gauge("domain_auc", "How well a classifier tells requests from training.", _last(judged, "domain"))
        gauge("importance_ndcg", "Agreement of feature importance with training.", _last(judged, "importance"))
    folder.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(folder / FILE), registry)


def _columns(registry: CollectorRegistry, newest: Window) -> None:
    psi = Gauge("understudy_drift_psi", "PSI of the last week, or else day.", ["feature"], registry=registry)
    alarm = Gauge("understudy_drift_alarm", "Whether a feature is in alarm.", ["feature"], registry=registry)
    raised = {c.feature for c in newest.columns if c.alarms}
    for column in sorted(newest.columns, key=lambda c: c.span == SPAN):
        alarm.labels(column.feature).set(float(column.feature in raised))
        if column.psi is not None:
            psi.labels(column.feature).set(column.psi)


def _last(judged: Sequence[Window], rule: str) -> float | None:
    for window in reversed(judged[-SPAN:]):
        if window.digest == judged[-1].digest:
            for check in window.checks:
                if check.rule == rule and check.value is not None:
                    return check.value
    return None
