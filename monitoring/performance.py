"""How good both roles were on the rows whose truth is known, always paired by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from scipy import stats

from monitoring.plan import Plan
from monitoring.quality import (
    CalibrationBin,
    Fading,
    Gain,
    Metric,
    Overconfidence,
    Performance,
    RunningPoint,
)
from monitoring.sequential import Units, discordant_log_e, interval, interval_sequence, log_e_values
from monitoring.slices import slices_of
from monitoring.statistics import Difference, Discordance, Floats, Ints, auc, briers, ece, floats, log_losses, mcnemar
from monitoring.units import auc_units, ece_units, mean_units, overconfidence_units

_BINS = 10
_THIRDS = 9
_LARGEST_LOG_E = 500.0


@dataclass(frozen=True)
class _Rows:
    """The labelled pairs as arrays."""

    labels: Floats
    primary: Floats
    shadow: Floats
    blocks: Ints

    @property
    def gain(self) -> Floats:
        return log_losses(self.labels, self.primary) - log_losses(self.labels, self.shadow)

    def right(self, threshold: float) -> tuple[Floats, Floats]:
        truth = self.labels == 1
        return tuple(np.asarray((s >= threshold) == truth, dtype=np.float64) for s in (self.primary, self.shadow))  # type: ignore[return-value]


def performance(
    frame: pd.DataFrame, *, slices: tuple[str, ...], thresholds: tuple[float, ...], plan: Plan
) -> Performance | None:
    """Measure both roles on labelled pairs.

    Args:
        frame: rows of whole blocks with ``at, prediction, shadow_prediction, label``, none of them null.
        slices: columns of ``frame`` to split by; rows without a value are left out of that split.
        thresholds: scores above which the decision is positive, to be shown.

    Returns:
        None when there are no rows.
    """
    if frame.empty:
        return None
    labels, primary, shadow = (floats(frame[name]) for name in ("label", "prediction", "shadow_prediction"))
    rows = _Rows(labels, primary, shadow, blocks_of(frame["at"], plan.block))
    loss = mean_units(rows.gain, rows.blocks)
    found, small = slices_of(frame, rows.gain, labels, rows.blocks, slices, plan)
    evidence, path = _gain(rows, loss, plan)
    return Performance(
        rows=len(frame),
        blocks=len(loss.sums),
        positive_share=float(labels.mean()),
        metrics=_metrics(rows, loss, plan),
        overall=_overall(rows),
        gain=evidence,
        overconfidence=_overconfidence(rows, plan.confidence),
        fading=_fading(loss),
        decisions=tuple((t, _decisions(rows, t)) for t in thresholds),
        calibration=_calibration("primary", labels, primary) + _calibration("shadow", labels, shadow),
        running=_running(loss, path, rows.blocks, plan),
        slices=found,
        slices_too_small=small,
    )


def blocks_of(at: pd.Series, block: timedelta) -> Ints:
    """Number of the block of time each instant falls in, counted from 1970 in UTC."""
    micros = at.to_numpy(dtype="datetime64[us]").astype(np.int64)
    return np.asarray(micros // (block // timedelta(microseconds=1)), dtype=np.int64)


def difference(units: Units, rows: int, plan: Plan) -> Difference:
    """The estimate over some units with its interval."""
    return Difference(units.value, *interval(units, plan.confidence), rows, int((units.weights > 0).sum()))


def gain_path(decisions: Units, log_loss: Units, plan: Plan) -> Floats:
    """Log e-value after each block that the shadow is better: in its decisions, or in log loss.

    The average of two e-values, by weights fixed beforehand, is one (Vovk and Wang, Annals of Statistics 2021).
    """
    stakes = math.log(plan.decisions_stake), math.log1p(-plan.decisions_stake)
    return np.logaddexp(stakes[0] + log_e_values(decisions), stakes[1] + log_e_values(log_loss))


def _gain(rows: _Rows, loss: Units, plan: Plan) -> tuple[Gain, Floats]:
    first, second = rows.right(plan.threshold)
    decisions = mean_units(second - first, rows.blocks)
    path = gain_path(decisions, loss, plan)
    wins, losses = np.asarray([(second > first).sum()]), np.asarray([(first > second).sum()])
    by_row = discordant_log_e(wins.astype(np.float64), losses.astype(np.float64))
    found = Gain(
        log_loss=_e(log_e_values(loss)[-1]),
        decisions=_e(log_e_values(decisions)[-1]),
        combined=_e(path[-1]),
        row_level=_e(by_row[-1]),
        threshold=plan.threshold,
    )
    return found, path


def _metrics(rows: _Rows, loss: Units, plan: Plan) -> tuple[Metric, ...]:
    labels, primary, shadow, n = rows.labels, rows.primary, rows.shadow, len(rows.labels)
    squares = briers(labels, primary), briers(labels, shadow)
    right = rows.right(plan.threshold)
    plain = [
        ("log_loss", "Log loss", False, log_losses(labels, primary), log_losses(labels, shadow), loss),
        ("brier", "Brier score", False, *squares, mean_units(squares[0] - squares[1], rows.blocks)),
        ("accuracy", f"Right at {plan.threshold:g}", True, *right, mean_units(right[0] - right[1], rows.blocks)),
    ]
    out = [
        Metric(name, title, higher, float(first.mean()), float(second.mean()), difference(units, n, plan))
        for name, title, higher, first, second, units in plain
    ]
    ranking, *each = auc_units(labels, primary, shadow, rows.blocks)
    if ranking.weights.sum():
        out.append(
            Metric("auc", "AUC within a block", True, each[0].value, each[1].value, difference(ranking, n, plan))
        )
    errors, *each = ece_units(labels, primary, shadow, rows.blocks)
    title = "Calibration error within a block"
    out.append(Metric("ece", title, False, each[0].value, each[1].value, difference(errors, n, plan)))
    return tuple(out)


def _overall(rows: _Rows) -> dict[str, tuple[float, float]]:
    out = {"calibration error": (ece(rows.labels, rows.primary), ece(rows.labels, rows.shadow))}
    first, second = auc(rows.labels, rows.primary), auc(rows.labels, rows.shadow)
    return {"AUC": (first, second), **out} if first is not None and second is not None else out


def _overconfidence(rows: _Rows, confidence: float) -> Overconfidence:
    one, two = (overconfidence_units(rows.labels, s, rows.blocks) for s in (rows.primary, rows.shadow))
    return Overconfidence(one.value, two.value, *interval(two, confidence))


def _fading(loss: Units) -> Fading | None:
    """Compare thirds by a test for one look: it can only hold a shadow back, so looking often promotes nobody."""
    whole = loss.weights >= 0.25 * np.median(loss.weights)
    means = (loss.sums / loss.weights)[whole]
    if len(means) < _THIRDS:
        return None
    parts = np.array_split(means, 3)
    first, last = parts[0], parts[-1]
    change = float(last.mean() - first.mean())
    if np.ptp(first) == 0 and np.ptp(last) == 0:
        return Fading(float(first.mean()), float(last.mean()), change, len(means))
    bounds = stats.ttest_ind(last, first, equal_var=False).confidence_interval(0.98)
    return Fading(float(first.mean()), float(last.mean()), float(bounds.high), len(means))


def _decisions(rows: _Rows, threshold: float) -> Discordance:
    first, second = rows.right(threshold)
    return mcnemar(first == 1, second == 1)


def _calibration(role: str, labels: Floats, scores: Floats) -> tuple[CalibrationBin, ...]:
    """Bins of equal numbers of rows, so that every point of the curve rests on as much data as the next."""
    groups = np.array_split(np.argsort(scores, kind="stable"), min(_BINS, len(scores)))
    return tuple(CalibrationBin(role, float(scores[g].mean()), float(labels[g].mean()), len(g)) for g in groups)


def _running(loss: Units, path: Floats, blocks: Ints, plan: Plan) -> tuple[RunningPoint, ...]:
    names = np.unique(blocks)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return tuple(
        RunningPoint(epoch + (int(names[end - 1]) + 1) * plan.block, value, low, high, _e(path[end - 1]))
        for end, value, low, high in interval_sequence(loss, plan.confidence)
    )


def _e(log_e: float) -> float:
    return math.exp(min(float(log_e), _LARGEST_LOG_E))
