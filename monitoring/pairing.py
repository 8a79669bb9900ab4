"""Joins the three logs by request: what was answered, what the shadow would have answered, what came true."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from monitoring.export import Export
from monitoring.floor import AGAIN
from monitoring.labels import LabelNotes, resolve

# The slot of logs that name none, and what the shadow log calls a second answer of the primary.
FIRST = "shadow"
PRIMARY = "primary"
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
            ``label`` (0, 1 or NaN), ``known_at``, and ``prediction_again`` where a slot was named.
        notes: what had to be set aside.
        slot: the shadow's.
    """

    frame: pd.DataFrame
    notes: Notes
    slot: str = FIRST


def slots_in(predictions: Export, shadow: Export) -> list[str]:
    """Return the slots that were asked or answered in the logs, the first one first."""
    offered = {slot for each in predictions.frame["shadows"].dropna().unique() for slot in each.split(",") if slot}
    lines = set(shadow.frame["shadow"].fillna(FIRST).unique()) - {PRIMARY}
    return sorted(offered | lines)


def paired(predictions: Export, shadow: Export, labels: Export, slot: str | None = None) -> Paired:
    """Join the logs by ``request_id``; every prediction keeps exactly one row.

    Args:
        slot: whose shadow's lines are joined, ``shadow_sampled`` being whether that one was asked; then
            ``prediction_again`` is what the answering primary said when it was asked once more. None: all lines are
            one shadow's, and ``shadow_sampled`` stays what it is.
    """
    asked = predictions.frame.drop_duplicates("request_id", keep="first")
    ours = shadow.frame
    if slot is not None:
        lines_of = ours["shadow"].fillna(FIRST)
        asked, ours = _asked(asked, slot, ours[lines_of.eq(PRIMARY)]), ours[lines_of.eq(slot)]
    lines = ours.drop_duplicates("request_id", keep="first")
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
        duplicate_shadow=len(ours) - len(lines),
        orphan_shadow=int((~known).sum()),
        unasked_shadow=int((known & ~wanted).sum()),
        labels=found,
    )
    return Paired(frame.sort_values("at", kind="stable", ignore_index=True), notes, slot or FIRST)


def _asked(predictions: pd.DataFrame, slot: str, again: pd.DataFrame) -> pd.DataFrame:
    """Say of each prediction whether a slot was asked, and what the primary said again."""
    offers = predictions["shadows"]
    takes = offers.isin([each for each in offers.dropna().unique() if slot in each.split(",")])
    # A log from before there were several names no slot; its only shadow was the first.
    before = predictions["shadow_sampled"].fillna(value=False).astype(bool) & (slot == FIRST)
    sampled = takes.mask(offers.isna(), before).astype("boolean")
    said = again[again["outcome"].eq("scored")].drop_duplicates("request_id", keep="first").set_index("request_id")
    second = predictions["request_id"].map(said["prediction"]).astype("float64")
    # Between answer and second answer another model may have taken over.
    same = predictions["request_id"].map(said["model_digest"]).eq(predictions["model_digest"])
    return predictions.drop(columns="shadows").assign(
        shadow_sampled=sampled, **{AGAIN: second.where(same & predictions["role"].eq("primary"))}
    )
