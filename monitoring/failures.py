"""How often each role fails to answer what it is asked, request by request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from monitoring.performance import blocks_of, difference
from monitoring.plan import Plan
from monitoring.statistics import Difference
from monitoring.units import mean_units

KINDS = ("error", "timeout", "invalid_output")


@dataclass(frozen=True)
class FailureRate:
    """One kind of failure of both roles on the requests both were asked.

    Attributes:
        kind: ``error``, ``timeout``, ``invalid_output``, or ``any`` of them.
        rows: requests both were asked.
        primary, shadow: requests on which each failed that way.
        difference: share of the primary minus share of the shadow.
    """

    kind: str
    rows: int
    primary: int
    shadow: int
    difference: Difference


def failure_rates(frame: pd.DataFrame, valid: pd.Series, plan: Plan) -> tuple[FailureRate, ...]:
    """Count failures of both roles and pair them.

    A primary that was not asked (its features were invalid, its breaker open) did not fail; nor did a shadow whose
    request was dropped before it reached it.

    Args:
        frame: a campaign's rows.
        valid: whether the shadow gave each a valid score.
    """
    reasons = frame["fallback_reason"].astype("string").fillna("")
    # Where the fallback failed, too, the reason names both.
    primary = {kind: reasons.str.contains(f"primary_{kind}", regex=False).astype(bool) for kind in KINDS}
    dropped = frame["shadow_outcome"].eq("dropped") & ~valid
    shadow = {kind: dropped & frame["shadow_reason"].eq(kind) for kind in KINDS}
    shadow["invalid_output"] |= frame["shadow_outcome"].eq("scored") & ~valid
    asked = (frame["role"].eq("primary") | _any(primary)) & (valid | _any(shadow))
    if not asked.any():
        return ()
    blocks = blocks_of(frame.loc[asked, "at"], plan.block)
    out = []
    for kind, first, second in (*((k, primary[k], shadow[k]) for k in KINDS), ("any", _any(primary), _any(shadow))):
        one, two = first[asked].to_numpy(dtype=np.float64), second[asked].to_numpy(dtype=np.float64)
        apart = difference(mean_units(one - two, blocks), len(one), plan)
        out.append(FailureRate(kind, len(one), int(one.sum()), int(two.sum()), apart))
    return tuple(out)


def _any(each: dict[str, pd.Series]) -> pd.Series:
    return pd.concat(each, axis=1).any(axis=1)
