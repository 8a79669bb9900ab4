"""The units of a split: which coin was tossed for whom, with what chance, and when its outcome is due. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from monitoring.sequential import sample_ratio_log_e
from service.split import Split

_BITS = 2.0**64


@dataclass(frozen=True)
class Question:
    """What is asked of a split's log.

    Attributes:
        metric, goal: what is compared.
        maturity: age at which an outcome should have come.
        now: by the clock.
        ended: when the split ended; None while it runs.
    """

    metric: str
    goal: str
    maturity: timedelta
    now: datetime
    ended: datetime | None = None

    @property
    def sign(self) -> float:
        """1 when more is better, -1 when less is."""
        return 1.0 if self.goal == "higher" else -1.0


def ours(rows: pd.DataFrame, split: Split) -> pd.DataFrame:
    """The rows that no foreign model answered: around a move of the roles a gateway may be half a second late."""
    expected = rows["role"].map({"primary": split.control, split.slot: split.treatment})
    return rows[expected.isna() | expected.eq(rows["model_digest"])]


def draws(rows: pd.DataFrame, asked: Question, window: timedelta) -> pd.DataFrame:
    """One row per unit and stage in which its arm was not known yet, in the order in which they are looked at.

    Columns: ``unit, revision, share, treated, chance, start, close, requests, value`` (mean over its requests with
    one), ``has_value``, ``due`` (whether its outcome should be known by now).
    """
    frame = rows.assign(number=rows["split_unit"].map(lambda u: int(u, 16) / _BITS)).sort_values("at", kind="stable")
    ends = frame.groupby("split_revision")["at"].min().shift(-1)
    known: pd.DataFrame | None = None
    parts = []
    for revision, stage in frame.groupby("split_revision", sort=True):
        end = ends[revision]
        end = asked.ended if pd.isna(end) else end
        part = _stage(stage, window, end)
        part["revision"] = revision
        bounds = part[["unit"]].assign(low=0.0, high=1.0) if known is None else part[["unit"]].join(known, on="unit")
        low, high = bounds["low"].fillna(0.0).to_numpy(), bounds["high"].fillna(1.0).to_numpy()
        share = part["share"].to_numpy(dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            part["chance"] = np.clip((share - low) / (high - low), 0.0, 1.0)
        treated = part["treated"].to_numpy(dtype=bool)
        fresh = pd.DataFrame(
            {"low": np.where(treated, low, np.maximum(low, share)),
             "high": np.where(treated, np.minimum(high, share), high)}, index=part["unit"],
        )  # fmt: skip
        known = fresh if known is None else pd.concat([known[~known.index.isin(fresh.index)], fresh])
        parts.append(part[(part["chance"] > 0) & (part["chance"] < 1)])
    units = pd.concat(parts, ignore_index=True) if parts else _stage(frame, window, None).assign(revision=0, chance=0.5)
    units["due"] = units["close"] + asked.maturity <= asked.now
    return units.sort_values(["close", "unit"], kind="stable", ignore_index=True)


def sample_ratio(units: pd.DataFrame) -> float:
    """Log e-value against "units fall as they were drawn": each chance has its own coin, and the wealths multiply."""
    total = 0.0
    for chance, group in units.groupby(units["chance"].round(12)):
        treated = int(group["treated"].sum())
        total += sample_ratio_log_e([len(group) - treated, treated], [1 - float(chance), float(chance)])
    return total


def _stage(stage: pd.DataFrame, window: timedelta, end: Any) -> pd.DataFrame:
    """The units of one stage: requests within ``window`` of a unit's first."""
    start = stage.groupby("split_unit")["at"].transform("min")
    inside = stage[stage["at"] <= start + window].assign(start=start)
    part = inside.groupby("split_unit", sort=False).agg(
        share=("split_share", "first"), number=("number", "first"), arm=("arm", "first"), start=("start", "first"),
        requests=("request_id", "size"), value=("value", "mean"),
    )  # fmt: skip
    part = part.reset_index(names="unit")
    part["treated"] = part.pop("arm").eq("treatment")
    part["close"] = part["start"] + window
    if end is not None:
        part["close"] = part["close"].where(part["close"] < end, end)
    part["has_value"] = part["value"].notna()
    return part


def wrong_arms(rows: pd.DataFrame) -> int:
    """How many rows' logged arm is not the one their draw gives."""
    number = rows["split_unit"].map(lambda u: int(u, 16))
    drawn = number.to_numpy(dtype=object) < rows["split_share"].to_numpy(dtype=float) * _BITS
    return int((drawn.astype(bool) != rows["arm"].eq("treatment").to_numpy()).sum())
