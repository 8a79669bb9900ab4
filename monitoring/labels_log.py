"""The label log's two ends: which requests there are to label, and writing labels as the service does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring.export import read_log, scalar_columns
from service.prediction_log import SegmentLog
from service.progress import Say

_EVERY = 50_000


def asked(log_dir: Path) -> pd.DataFrame:
    """Every request of the prediction log once: ``request_id, at``.

    Reads nothing else of a record, which over a year takes a tenth of the time.
    """
    schema = {"request_id": "VARCHAR", "at": "TIMESTAMPTZ", "role": "VARCHAR", "prediction": "DOUBLE"}
    found = read_log(log_dir / "predictions", schema, scalar_columns(schema), required=tuple(schema))
    return found.frame[["request_id", "at"]].drop_duplicates("request_id").reset_index(drop=True)


def write(labels: pd.DataFrame, log_dir: Path, segment_bytes: int, now: datetime, say: Say) -> int:
    """Append labels to the log; returns how many could be kept.

    Args:
        labels: ``request_id, label, known_at``.
        now: when they were received.
    """
    if labels.empty:
        return 0
    log, kept = SegmentLog(log_dir / "labels", segment_bytes), 0
    columns = (labels["request_id"], labels["label"], labels["known_at"])
    for number, (name, label, known_at) in enumerate(zip(*columns, strict=True), 1):
        record: Mapping[str, Any] = {
            "request_id": name, "label": label, "known_at": known_at.to_pydatetime(), "at": now,
        }  # fmt: skip
        kept += log.append(record)
        if number % _EVERY == 0:
            say(f"wrote {number:,} of {len(labels):,}")
    log.close()
    return kept
