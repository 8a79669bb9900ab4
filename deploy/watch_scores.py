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


@dataclass(frozen=True)
class Moved:
    """How far one model's scores moved.

    Attributes:
        value: PSI against the same hours before.
        days: the same of each day before against the other days.
        before: scores that were compared with.
    """

    value: float
    days: Mapping[str, float]
    before: int


def moved(before: Scores, at: pd.Series, scores: Floats) -> Moved | None:
    """Compare scores with those from before; None without any from the same hours.

    A day is held against the other days at the hours it has itself: half a day is not like a whole one.
    """
    hours = set(at.dt.hour.astype(str))
    days = {day: {h: bins for h, bins in rows.items() if h in hours} for day, rows in before.counts.items()}
    total = _sum([bins for rows in days.values() for bins in rows.values()])
    if not total.sum():
        return None
    now = np.bincount(np.searchsorted(before.edges, scores, side="left"), minlength=len(before.edges) + 1)
    apart: dict[str, float] = {}
    for day, rows in days.items():
        one = _sum(list(rows.values()))
        others = _sum([bins for other, r in days.items() if other != day for h, bins in r.items() if h in rows])
        if min(one.sum(), others.sum()) >= LEAST_CALLS:
            apart[day] = stability(others, one)
    return Moved(stability(total, now), apart, int(total.sum()))


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
