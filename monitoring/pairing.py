"""Joins the three logs by request: what was answered, what the shadow would have answered, what came true."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from monitoring.export import Export
from monitoring.labels import LabelNotes, resolve

_SHADOW_NAMES = {
    "outcome": "shadow_outcome",
    "reason": "shadow_reason",
    "model_version": "shadow_version",
    "model_digest": "shadow_digest",
    "prediction": "shadow_prediction",
    "latency_ms": "shadow_ms",
    "batch": "shadow_batch",
}


@dataclass(frozen=True)
class Notes:
    """Everything about the logs that a reader of the result should know.

    Attributes:
        damaged_lines: lines of each log that were not a whole record.
        duplicate_predictions: prediction lines with a request id already seen; the first counts.
        duplicate_shadow: shadow lines with a request id already seen; the first counts.
        orphan_shadow: shadow lines whose prediction is not in the log.
        unasked_shadow: shadow lines of predictions that were not sampled; left out.
        labels: what was found in the label log.
    """

    damaged_lines: dict[str, int] = field(default_factory=dict)
    duplicate_predictions: int = 0
    duplicate_shadow: int = 0
    orphan_shadow: int = 0
    unasked_shadow: int = 0
    labels: LabelNotes = field(default_factory=LabelNotes)


@dataclass(frozen=True)
class Paired:
    """One row per prediction.

    Attributes:
        frame: the prediction's columns, then ``shadow_outcome`` (null when no shadow line), ``shadow_reason``,
            ``shadow_version``, ``shadow_digest``, ``shadow_prediction``, ``shadow_ms``, ``shadow_batch``,
            ``label`` (0, 1 or NaN), ``known_at``.
        notes: what had to be set aside.
    """

    frame: pd.DataFrame
    notes: Notes


def paired(predictions: Export, shadow: Export, labels: Export) -> Paired:
    """Join the logs by ``request_id``; every prediction keeps exactly one row."""
    asked = predictions.frame.drop_duplicates("request_id", keep="first")
    lines = shadow.frame.drop_duplicates("request_id", keep="first")
    sampled = asked.loc[asked["shadow_sampled"].fillna(value=False).astype(bool), "request_id"]
    known = lines["request_id"].isin(asked["request_id"])
    wanted = lines["request_id"].isin(sampled)
    truth, found = resolve(labels.frame, asked)
    rehearsed = lines.loc[wanted, ["request_id", *_SHADOW_NAMES]].rename(columns=_SHADOW_NAMES)
    frame = asked.merge(rehearsed, on="request_id", how="left", validate="one_to_one")
    frame = frame.merge(truth, on="request_id", how="left", validate="one_to_one")
    notes = Notes(
        damaged_lines={
            "predictions": predictions.damaged_lines,
            "shadow": shadow.damaged_lines,
            "labels": labels.damaged_lines,
        },
        duplicate_predictions=len(predictions.frame) - len(asked),
        duplicate_shadow=len(shadow.frame) - len(lines),
        orphan_shadow=int((~known).sum()),
        unasked_shadow=int((known & ~wanted).sum()),
        labels=found,
    )
    return Paired(frame.sort_values("at", kind="stable", ignore_index=True), notes)
