"""What being in an arm was like for those who asked: who answered, how often it failed, how long it took. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# Fewer requests of an arm in a stage say nothing about its slowest twentieth.
_LEAST = 100


@dataclass(frozen=True)
class Guard:
    """One arm, by intention to treat.

    Attributes:
        own: requests answered by the arm's own model.
        roles: requests by who answered.
        degraded: requests answered with less than normal confidence.
        p50, p95, p99: of the whole answer, in milliseconds; None without requests.
    """

    arm: str
    requests: int
    own: int
    roles: dict[str, int]
    degraded: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Guards:
    """Both arms, and what treatment changed, stage by stage and weighted by the treated requests of each.

    Attributes:
        failures: share of requests its own model did not answer, treatment minus control; None without both.
        latency_ratio: the treatment's 95th percentile over the control's; None without 100 requests of each.
    """

    arms: tuple[Guard, ...]
    failures: float | None
    latency_ratio: float | None


def guards(rows: pd.DataFrame, slot: str) -> Guards:
    """Describe both arms of a split.

    Args:
        rows: one row per request: ``arm, role, confidence, split_revision, ms.total``.
        slot: the role that answers the treated.
    """
    own = {"control": "primary", "treatment": slot}
    arms = tuple(_guard(arm, rows[rows["arm"].eq(arm)], role) for arm, role in own.items())
    failures, slower = _Weighted(), _Weighted()
    for _, stage in rows.groupby("split_revision"):
        control, treated = (stage[stage["arm"].eq(arm)] for arm in own)
        if len(control) and len(treated):
            failed = [side["role"].ne(role).mean() for side, role in ((control, "primary"), (treated, slot))]
            failures.add(failed[1] - failed[0], len(treated))
        if min(control["ms.total"].count(), treated["ms.total"].count()) >= _LEAST:
            p95 = [max(float(side["ms.total"].quantile(0.95)), 1e-3) for side in (control, treated)]
            slower.add(float(np.log(p95[1] / p95[0])), len(treated))
    ratio = slower.mean
    return Guards(arms, failures.mean, None if ratio is None else float(np.exp(ratio)))


def _guard(arm: str, rows: pd.DataFrame, role: str) -> Guard:
    roles = {str(name): int(n) for name, n in rows["role"].value_counts().items()}
    times = rows["ms.total"].dropna()
    p50, p95, p99 = (float(times.quantile(q)) if len(times) else None for q in (0.5, 0.95, 0.99))
    degraded = int(rows["confidence"].ne("normal").sum())
    return Guard(arm, len(rows), roles.get(role, 0), roles, degraded, p50, p95, p99)


@dataclass
class _Weighted:
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        self.total += value * weight
        self.weight += weight

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.weight else None
