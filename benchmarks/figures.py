"""What the serving benchmarks make of their measurements: ratios round by round, and the limits. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom

Run = Mapping[str, Any]

# Our stage names in the Server-Timing header, and what the limits call them.
STAGES = {"lookup": "lookup", "validate": "validation", "primary": "inference", "post": "post", "log": "log"}


@dataclass(frozen=True)
class Limit:
    """What one figure must keep. ``key`` may name an entry of an object: ``stage_p99_ms.log``."""

    key: str
    least: float | None = None
    most: float | None = None

    def fault(self, result: Mapping[str, Any]) -> str | None:
        """Say how a result misses it; None when it is kept."""
        value: Any = result
        for part in self.key.split("."):
            value = value.get(part) if value is not None else None
        if value is None:
            return f"{self.key} was not measured"
        if self.least is not None and value < self.least:
            return f"{self.key}={value} is below {self.least:g}"
        if self.most is not None and value > self.most:
            return f"{self.key}={value} is above {self.most:g}"
        return None


LIMITS = (
    Limit("ratio_vs_stock", least=1.0),
    Limit("ratio_vs_handwritten", least=1.25),
    Limit("p50_ratio_vs_stock_1", most=2.0),
    *(Limit(f"{shadow}_p50_ratio", most=1.05) for shadow in ("shadow", "slow_shadow", "dead_shadow")),
    *(Limit(f"{shadow}_p99_ratio", most=1.10) for shadow in ("shadow", "slow_shadow", "dead_shadow")),
    Limit("stage_p99_ms.lookup", most=5.0),
    Limit("stage_p99_ms.validation", most=2.0),
    Limit("stage_p99_ms.inference", most=12.0),
    Limit("stage_p99_ms.post", most=1.0),
    Limit("stage_p99_ms.log", most=1.0),
    # Without these the others mean nothing: what fails or falls back is quick.
    Limit("non_200", most=0),
    Limit("normal_share", least=0.95),
)


def ratio(ours: Sequence[Run], theirs: Sequence[Run], key: str) -> float:
    """Median over the rounds of ours divided by theirs, each within its round."""
    return round(float(statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))), 3)


def middle(runs: Sequence[Run], key: str) -> float:
    """Median over the rounds."""
    return round(float(statistics.median(run[key] for run in runs)), 3)


def against_others(runs: Mapping[str, Mapping[int, Sequence[Run]]]) -> dict[str, Any]:
    """Figures of the three services, from runs by service and number of connections."""
    names = ("ours", "stock_bentoml", "handwritten")
    mine, stock, hand = (runs[name] for name in names)
    return {
        **{f"{name}_rps_16": middle(runs[name][16], "rps") for name in names},
        "ratio_vs_stock": ratio(mine[16], stock[16], "rps"),
        "ratio_vs_handwritten": ratio(mine[16], hand[16], "rps"),
        "p50_ms_16": {name: middle(runs[name][16], "p50") for name in names},
        "p99_ms_16": {name: middle(runs[name][16], "p99") for name in names},
        "max_ms_16": {name: max(run["max"] for run in runs[name][16]) for name in names},
        "p50_ms_1": {name: middle(runs[name][1], "p50") for name in names},
        "p99_ms_1": {name: middle(runs[name][1], "p99") for name in names},
        "p50_ratio_vs_stock_1": ratio(mine[1], stock[1], "p50"),
    }


def beside(name: str, runs: Sequence[tuple[Run, Run, Run]]) -> dict[str, Any]:
    """Ratios of runs to those without a shadow just before and after each: median and its 95 % interval.

    Args:
        runs: each with the one before and the one after it.
    """
    found: dict[str, Any] = {}
    for key in ("p50", "p99"):
        ratios = [one[key] / math.sqrt(before[key] * after[key]) for one, before, after in runs]
        found[f"{name}_{key}_ratio"] = round(statistics.median(ratios), 3)
        found[f"{name}_{key}_ratio_95"] = [round(end, 3) for end in interval(ratios)]
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median that hold with 95 %, whatever the values' law (order statistics); all of few values."""
    ordered, count = sorted(values), len(values)
    rank = max((k for k in range(count // 2) if binom.cdf(k, count, 0.5) <= 0.025), default=0)
    return ordered[rank], ordered[count - 1 - rank]


def stage_p99s(runs: Sequence[Run]) -> dict[str, float]:
    """The 99th percentile of each stage that was measured, in milliseconds: median over the runs."""
    found = {
        ours: [run["stages"][name]["p99"] for run in runs if name in run["stages"]] for name, ours in STAGES.items()
    }
    return {stage: round(float(statistics.median(each)), 3) for stage, each in found.items() if each}


def faults(result: Mapping[str, Any]) -> list[str]:
    """Every limit that a result misses, one sentence each."""
    found = [fault for limit in LIMITS if (fault := limit.fault(result))]
    p99 = result["p99_ms_16"]
    slower = [name for name in p99 if name != "ours" and p99["ours"] >= p99[name]]
    return found + [f"p99_ms_16 of ours ({p99['ours']}) is not below that of {name} ({p99[name]})" for name in slower]
