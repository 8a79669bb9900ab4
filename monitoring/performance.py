"""How good both roles were on the rows whose truth is known, always paired by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from monitoring.evidence import CalibrationBin, Metric, Performance, RunningPoint, Slice
from monitoring.statistics import (
    Difference,
    Discordance,
    Floats,
    Ints,
    auc,
    briers,
    ece,
    log_losses,
    mcnemar,
    paired_auc,
    paired_ece,
    paired_mean,
    running_mean,
)

_BINS = 10


def performance(
    frame: pd.DataFrame,
    *,
    slices: tuple[str, ...],
    thresholds: tuple[float, ...],
    block: timedelta,
    minimum_slice: int,
    confidence: float,
) -> Performance | None:
    """Measure both roles on labelled pairs.

    Args:
        frame: rows with ``at, prediction, shadow_prediction, label``, none of them null.
        slices: columns of ``frame`` to split by; rows without a value are left out of that split.
        thresholds: scores above which the decision is positive.
        block: stretch of time within which rows are taken to depend on each other.
        minimum_slice: rows below which a slice is only counted.
        confidence: of every interval, 0 to 1.

    Returns:
        None when there are no rows.
    """
    if frame.empty:
        return None
    labels, primary, shadow = (_numbers(frame[name]) for name in ("label", "prediction", "shadow_prediction"))
    blocks = blocks_of(frame["at"], block)
    gain = log_losses(labels, primary) - log_losses(labels, shadow)
    found, small = _slices(frame, gain, labels, blocks, slices, minimum_slice, confidence)
    return Performance(
        rows=len(frame),
        blocks=len(np.unique(blocks)),
        positive_share=float(labels.mean()),
        metrics=_metrics(labels, primary, shadow, blocks, confidence),
        decisions=tuple((t, _decisions(labels, primary, shadow, t)) for t in thresholds),
        calibration=_calibration("primary", labels, primary) + _calibration("shadow", labels, shadow),
        running=_running(gain, blocks, block, confidence),
        slices=found,
        slices_too_small=small,
    )


def blocks_of(at: pd.Series, block: timedelta) -> Ints:
    """Number of the block of time each instant falls in, counted from 1970 in UTC."""
    micros = at.to_numpy(dtype="datetime64[us]").astype(np.int64)
    return np.asarray(micros // (block // timedelta(microseconds=1)), dtype=np.int64)


def _metrics(labels: Floats, primary: Floats, shadow: Floats, blocks: Ints, confidence: float) -> tuple[Metric, ...]:
    out = []
    for name, title, each in (("log_loss", "Log loss", log_losses), ("brier", "Brier score", briers)):
        first, second = each(labels, primary), each(labels, shadow)
        difference = paired_mean(first - second, blocks, confidence)
        out.append(Metric(name, title, False, float(first.mean()), float(second.mean()), difference))
    ranking = paired_auc(labels, primary, shadow, blocks, confidence)
    first_auc, second_auc = auc(labels, primary), auc(labels, shadow)
    if ranking is not None and first_auc is not None and second_auc is not None:
        out.append(Metric("auc", "AUC", True, first_auc, second_auc, ranking))
    calibration = paired_ece(labels, primary, shadow, blocks, confidence)
    out.append(Metric("ece", "Calibration error", False, ece(labels, primary), ece(labels, shadow), calibration))
    return tuple(out)


def _decisions(labels: Floats, primary: Floats, shadow: Floats, threshold: float) -> Discordance:
    truth = labels == 1
    return mcnemar((primary >= threshold) == truth, (shadow >= threshold) == truth)


def _calibration(role: str, labels: Floats, scores: Floats) -> tuple[CalibrationBin, ...]:
    """Bins of equal numbers of rows, so that every point of the curve rests on as much data as the next."""
    groups = np.array_split(np.argsort(scores, kind="stable"), min(_BINS, len(scores)))
    return tuple(CalibrationBin(role, float(scores[g].mean()), float(labels[g].mean()), len(g)) for g in groups)


def _running(gain: Floats, blocks: Ints, block: timedelta, confidence: float) -> tuple[RunningPoint, ...]:
    names, mean, low, high = running_mean(gain, blocks, confidence)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return tuple(
        RunningPoint(epoch + (int(b) + 1) * block, float(m), _finite(lo), _finite(hi))
        for b, m, lo, hi in zip(names, mean, low, high, strict=True)
    )


def _slices(
    frame: pd.DataFrame,
    gain: Floats,
    labels: Floats,
    blocks: Ints,
    columns: tuple[str, ...],
    minimum: int,
    confidence: float,
) -> tuple[tuple[Slice, ...], int]:
    groups = [(column, value, rows) for column in columns for value, rows in frame.groupby(column).indices.items()]
    large = [(column, value, rows) for column, value, rows in groups if len(rows) >= minimum]
    joint = 1 - (1 - confidence) / max(1, len(large))
    out = []
    for column, value, rows in large:
        alone = paired_mean(gain[rows], blocks[rows], confidence)
        together: Difference = paired_mean(gain[rows], blocks[rows], joint)
        share = float(labels[rows].mean())
        name = column.split(".", 1)[-1]
        out.append(Slice(name, str(value), share, alone, together.low, together.high))
    return tuple(sorted(out, key=lambda s: (columns_order(columns, s.column), s.difference.value))), len(groups) - len(
        large
    )


def columns_order(columns: tuple[str, ...], name: str) -> int:
    """Position of a slice's column among the declared ones."""
    return [column.split(".", 1)[-1] for column in columns].index(name)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(column: pd.Series) -> Floats:
    return column.to_numpy(dtype=np.float64)
