"""How far labels have come as Prometheus series, in the text format of a file: ``<state>/monitoring/labels.prom``."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.maturity import Maturity

FILE = "labels.prom"


def write_series(folder: Path, found: Maturity, orphans: int = 0) -> None:
    """Write the file anew; what is not known has no series.

    Args:
        orphans: labels of no prediction that a file just had, which are not in the log.
    """
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            Gauge(f"understudy_{name}", text, registry=registry).set(value)

    gauge("label_coverage", "Share of predictions old enough that have a label.", found.mature_coverage)
    watermark = found.watermark.timestamp() if found.watermark else None
    gauge("label_watermark_timestamp_seconds", "Newest prediction up to which labels are complete.", watermark)
    gauge("labels_orphan", "Labels of no prediction in the log.", found.orphans + orphans)
    gauge("label_lag_seconds", "From prediction to truth, median of the last seven days' labels.", found.lag)
    write_to_textfile(str(folder / FILE), registry)
