"""Whether a result holds for fresh, for stale and for fallback rows alike. Pure.

A model trained on whole vectors may be better on those and worse on vectors with holes, and the other way round; the
average hides it. And the fallback's rows say what the shadow would have done where the primary could not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monitoring.floor import AGAIN, changed_decisions
from monitoring.performance import blocks_of, difference
from monitoring.plan import Plan
from monitoring.quality import Freshness, PairedMeasure
from monitoring.statistics import Floats, briers, floats, log_losses
from monitoring.units import mean_units

_NEEDED = ("at", "role", "violations", "prediction", "shadow_prediction", "label", AGAIN)


def by_freshness(frame: pd.DataFrame, scored: pd.Series, horizon: pd.Timestamp, plan: Plan) -> tuple[Freshness, ...]:
    """Split a campaign by what its vectors were like, and measure answer against shadow in each part.

    Args:
        frame: the campaign's rows.
        scored: whether the shadow gave each a valid score.
        horizon: labels of earlier rows are mature.
    """
    # Parts of a frame are copies of it, and vectors are most of it.
    narrow = frame[[name for name in _NEEDED if name in frame]]
    return tuple(
        _part(name, meaning, narrow[rows], scored[rows], horizon, plan) for name, meaning, rows in _parts(narrow)
    )


def _parts(frame: pd.DataFrame) -> tuple[tuple[str, str, pd.Series], ...]:
    first = frame["role"].eq("primary")
    broken = frame["violations"].gt(0) if "violations" in frame else pd.Series(False, index=frame.index)
    return (
        ("fresh", "answered by the primary, every value there and young enough", first & ~broken),
        ("stale", "answered by the primary although a value was stale, missing or out of its limits", first & broken),
        ("fallback", "answered by the fallback or the safe default", frame["role"].isin(("fallback", "none"))),
    )


def _part(
    name: str, meaning: str, rows: pd.DataFrame, scored: pd.Series, horizon: pd.Timestamp, plan: Plan
) -> Freshness:
    both = rows[scored & rows["prediction"].notna()]
    changed = (both["prediction"] >= plan.threshold) != (both["shadow_prediction"] >= plan.threshold)
    known = both[both["label"].notna() & (both["at"] < horizon)]
    return Freshness(
        name=name,
        meaning=meaning,
        rows=len(rows),
        pairs=len(both),
        disagreement=None if both.empty else float(changed.mean()),
        noise=changed_decisions(both, plan.threshold) if name != "fallback" else None,
        labelled=len(known),
        measures=() if known.empty else _measures(known, plan),
    )


def _measures(known: pd.DataFrame, plan: Plan) -> tuple[PairedMeasure, ...]:
    labels, answered, shadow = (floats(known[name]) for name in ("label", "prediction", "shadow_prediction"))
    blocks = blocks_of(known["at"], plan.block)
    truth = labels == 1
    right = [np.asarray((s >= plan.threshold) == truth, dtype=np.float64) for s in (answered, shadow)]
    pairs: tuple[tuple[str, bool, Floats, Floats], ...] = (
        ("log_loss", False, log_losses(labels, answered), log_losses(labels, shadow)),
        ("brier", False, briers(labels, answered), briers(labels, shadow)),
        ("accuracy", True, right[0], right[1]),
    )
    return tuple(
        PairedMeasure(
            name, higher, float(a.mean()), float(b.mean()), difference(mean_units(a - b, blocks), len(known), plan)
        )
        for name, higher, a, b in pairs
    )
