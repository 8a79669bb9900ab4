"""What a split found: logged answers and outcomes in, one frozen record of numbers out. Pure.

Arms are compared by intention to treat: a request belongs to the arm it was drawn into, whoever answered it in the
end. A stage is a stretch with one share. A key that was control at one share is drawn again when the share is raised,
and the chance of that draw is known; so each key plays once per stage, with the chance it had then, and shares that
change beside a trend are no confounder (Simpson's paradox needs pooled arms).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from monitoring.evidence import Version
from monitoring.split_arms import guards
from monitoring.split_evidence import Day, Point, SplitEvidence, SplitNotes, Stage
from monitoring.split_game import Effect, Toss, effect, log_wealth, two_sided
from monitoring.split_units import Question, draws, ours, sample_ratio, wrong_arms
from monitoring.statistics import Floats
from service.split import Split

_POINTS = 100


def evidence(
    rows: pd.DataFrame, split: Split, asked: Question, *, contract: str = "", notes: dict[str, Any] | None = None
) -> SplitEvidence:
    """Gather everything.

    Args:
        rows: one row per request of this split: ``request_id, at, role, model_version, model_digest, arm,
            split_revision, split_share, split_unit, ms.total, service_version``, and ``value``, its outcome or NaN.
        split: as it was declared.
        asked: what is compared, and until when.
        contract: digest of the features' contract.
        notes: what was found while reading: ``damaged_lines, duplicates, keyless, values``.
    """
    kept = ours(rows, split)
    units = draws(kept, asked, timedelta(seconds=split.window_s) if split.key else timedelta(0))
    due = units[units["due"]]
    counted = due[due["value"].notna()]
    toss = _toss(counted, "value")
    gain, harm = (log_wealth(toss, better=side * asked.sign) for side in (1.0, -1.0))
    found = effect(toss)
    arms = guards(kept, split.slot)
    later = effect(toss.of(slice(len(toss.outcome) // 2, None))).value
    return SplitEvidence(
        split=split,
        control=_version(kept, "primary", split.control),
        treatment=_version(kept, split.slot, split.treatment),
        contract=contract,
        service_versions=tuple(sorted(str(v) for v in kept["service_version"].dropna().unique())),
        as_of=asked.now,
        first=_moment(kept["at"].min(), split.opened),
        last=_moment(kept["at"].max(), split.opened),
        ended=asked.ended,
        metric=asked.metric,
        goal=asked.goal,
        declared=(asked.metric, asked.goal) == (split.metric, split.goal),
        requests=len(kept),
        drawn=len(units),
        drawn_treated=int(units["treated"].sum()),
        counted=len(counted),
        counted_treated=int(counted["treated"].sum()),
        control_mean=_mean(counted.loc[~counted["treated"], "value"]),
        treatment_mean=_mean(counted.loc[counted["treated"], "value"]),
        difference=_last(found.value),
        low=_last(found.low),
        high=_last(found.high),
        later=_last(later),
        gain=_e(gain),
        harm=_e(harm),
        sample_ratio=_exp(sample_ratio(units)),
        wrong_arms=wrong_arms(kept),
        coverage=len(counted) / len(due) if len(due) else None,
        coverage_differs=_exp(two_sided(_toss(due, "has_value"))),
        exposure_differs=_exp(two_sided(_toss(due, "requests"))) if split.key else None,
        stages=tuple(_stages(kept, units)),
        days=tuple(_days(counted)),
        path=tuple(_path(counted, gain, found)),
        guards=arms.arms,
        failures=arms.failures,
        latency_ratio=arms.latency_ratio,
        notes=SplitNotes(
            **{"damaged_lines": 0, "duplicates": 0, "keyless": 0, "values": {}, **(notes or {})},
            foreign=len(rows) - len(kept),
            waiting=len(units) - len(due),
            valueless=len(due) - len(counted),
        ),
    )


def _toss(units: pd.DataFrame, column: str) -> Toss:
    outcome = units[column].to_numpy(dtype=np.float64)
    return Toss(units["treated"].to_numpy(dtype=bool), units["chance"].to_numpy(dtype=np.float64), outcome)


def _stages(rows: pd.DataFrame, units: pd.DataFrame) -> list[Stage]:
    found = []
    for revision, stage in rows.groupby("split_revision", sort=True):
        mine = units[units["revision"] == revision]
        counted = mine[mine["due"] & mine["has_value"]]
        means = [_mean(counted.loc[counted["treated"] == arm, "value"]) for arm in (False, True)]
        found.append(
            Stage(
                int(stage["split_revision"].iloc[0]), float(stage["split_share"].iloc[0]), _moment(stage["at"].min()),
                _moment(stage["at"].max()), len(stage), len(mine), int(mine["treated"].sum()), len(counted),
                int(counted["treated"].sum()), *means,
            )
        )  # fmt: skip
    return found


def _days(units: pd.DataFrame) -> list[Day]:
    found = []
    for day, group in units.groupby(units["start"].dt.floor("D")):
        # Within a day the share may change: each unit is held against what its own chance led one to expect.
        weight = group["chance"] * (1 - group["chance"])
        treated = int(group["treated"].sum())
        both = 0 < treated < len(group)
        x = (group["treated"] - group["chance"]) * (group["value"] - group["value"].mean())
        found.append(Day(_moment(day), len(group) - treated, treated, float(x.sum() / weight.sum()) if both else None))
    return found


def _path(units: pd.DataFrame, gain: Floats, found: Effect) -> list[Point]:
    if units.empty:
        return []
    # Where a stage ends many units close at once: one point shows where they led.
    close = units["close"].to_numpy()
    last = np.flatnonzero(np.append(close[1:] != close[:-1], [True]))
    ends = last[np.unique(np.linspace(0, len(last) - 1, min(_POINTS, len(last))).round().astype(np.int64))]
    return [
        Point(
            _moment(units["close"].iloc[i]), int(i) + 1, _exp(float(gain[i])), float(found.value[i]),
            _none(found.low[i]), _none(found.high[i]),
        )
        for i in ends
    ]  # fmt: skip


def _version(rows: pd.DataFrame, role: str, wanted: str) -> Version:
    mine = rows.loc[rows["role"].eq(role), "model_version"].dropna()
    return Version(str(mine.iloc[-1]) if len(mine) else None, wanted)


def _moment(at: Any, otherwise: datetime | None = None) -> datetime:
    moment: datetime = (
        otherwise if otherwise is not None and pd.isna(at) else pd.Timestamp(at).floor("us").to_pydatetime()
    )
    return moment


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None


def _last(values: Floats) -> float | None:
    return _none(values[-1]) if len(values) else None


def _none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _e(path: Floats) -> float:
    return _exp(float(path[-1])) if len(path) else 1.0


def _exp(log_e: float) -> float:
    # More evidence than this is not worth a number, and JSON has none for infinity.
    return float(np.exp(np.clip(log_e, -700.0, 700.0)))
