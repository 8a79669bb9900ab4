"""How far a model's scores moved: counted by day and hour, so that nights are compared with nights. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from monitoring.compare import LEAST_CALLS
from monitoring.statistics import Floats, stability

BINS = 10


@dataclass(frozen=True)
class Scores:
    """A model's scores, by day and hour of the day, so that nights are compared with nights.

    Attributes:
        edges: inner edges of the bins.
        counts: per day (ISO date) and hour the number of scores in each bin.
    """

    edges: tuple[float, ...]
    counts: Mapping[str, Mapping[str, tuple[int, ...]]]


def moved(before: Scores, at: pd.Series, scores: Floats) -> tuple[float, float, int] | None:
    """PSI of scores against the same hours before, the largest such of a day before, and the number before."""
    hours = set(at.dt.hour.astype(str))
    days = {day: _sum([bins for hour, bins in rows.items() if hour in hours]) for day, rows in before.counts.items()}
    days = {day: bins for day, bins in days.items() if bins.sum()}
    if not days:
        return None
    total = _sum(list(days.values()))
    now = np.bincount(np.searchsorted(before.edges, scores, side="left"), minlength=len(before.edges) + 1)
    full = [bins for bins in days.values() if bins.sum() >= LEAST_CALLS]
    apart = [stability(total - bins, bins) for bins in full] if len(full) > 1 else []
    return stability(total, now), max(apart, default=0.0), int(total.sum())


def _sum(bins: Sequence[Any]) -> Any:
    return np.asarray(bins, dtype=np.int64).sum(axis=0) if len(bins) else np.zeros(1, dtype=np.int64)


def tabled(at: pd.Series, scores: Floats) -> Scores | None:
    """Count scores into bins of equal numbers; None when there are too few."""
    if len(scores) < LEAST_CALLS:
        return None
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, scores, side="left")
    frame = pd.DataFrame({"day": at.dt.strftime("%Y-%m-%d"), "hour": at.dt.hour.astype(str), "bin": place})
    counts: dict[str, dict[str, tuple[int, ...]]] = {}
    for (day, hour), bins in frame.groupby(["day", "hour"])["bin"]:
        found = np.bincount(bins.to_numpy(), minlength=len(edges) + 1)
        counts.setdefault(str(day), {})[str(hour)] = tuple(int(n) for n in found)
    return Scores(tuple(float(e) for e in edges), counts)
