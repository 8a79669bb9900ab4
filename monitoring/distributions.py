"""Do served values look like those a model was trained on? One line per feature. Pure.

Skew between two pipelines shows here even where nothing can be recomputed. So do real changes of the world: a shift is
a question, a feature that went missing is an alarm.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from monitoring.statistics import ks, psi, stability
from service.contract import Contract, FieldSpec

# The field's usual reading: below 0.1 no shift, up to 0.2 look, above act.
PSI_LIMIT = 0.2
# With many rows any difference is significant: a Kolmogorov-Smirnov test counts only with an effect this large.
KS_LIMIT, KS_ALPHA = 0.1, 0.01
# Null rates may differ by this much.
NULLS_LIMIT = 0.05
LEAST_ROWS = 100
# A feature is missing when so many nulls in a row would be this unlikely with training's null rate.
MISSING_P, MISSING_ROWS = 1e-3, 10


@dataclass(frozen=True)
class Shift:
    """One feature in training and in serving.

    Attributes:
        psi: population stability index; for categories over their shares. None with too few values.
        ks, ks_p: Kolmogorov-Smirnov distance and p-value; None for categories.
        training_nulls, serving_nulls: share of null values.
        unseen: share of served categories that training did not have.
        alarm: ``missing`` (never served, though training had values), ``shifted``, ``nulls`` (another share of
            nulls), or empty.
    """

    feature: str
    psi: float | None
    ks: float | None
    ks_p: float | None
    training_nulls: float
    serving_nulls: float
    unseen: float
    alarm: str


def shifts(
    training: pd.DataFrame, serving: pd.DataFrame, contract: Contract, features: Collection[str] | None = None
) -> list[Shift]:
    """Compare two frames feature by feature.

    Args:
        training: a sample of what the model was trained on; a feature it lacks is skipped.
        serving: logged values; a feature it lacks is missing.
        features: those to compare; None for all.
    """
    wanted = contract.features if features is None else features
    return [_shift(s, training, serving) for s in contract.fields if s.name in training and s.name in wanted]


def _shift(spec: FieldSpec, training: pd.DataFrame, serving: pd.DataFrame) -> Shift:
    before: pd.Series[Any] = training[spec.name]
    after: pd.Series[Any] = serving[spec.name] if spec.name in serving else pd.Series([None] * len(serving))
    nulls = float(before.isna().mean()), float(after.isna().mean()) if len(after) else 0.0
    known = before.dropna(), after.dropna()
    index: float | None = None
    distance: float | None = None
    p_value: float | None = None
    unseen = 0.0
    if min(len(k) for k in known) >= LEAST_ROWS:
        if spec.is_category:
            index = _category_psi(*known)
            unseen = float((~known[1].isin(known[0].unique())).mean())
        else:
            a, b = (np.asarray(k, dtype=np.float64) for k in known)
            index, (distance, p_value) = psi(a, b), ks(a, b)
    alarm = ""
    if nulls[1] == 1 and len(after) >= MISSING_ROWS and nulls[0] ** len(after) < MISSING_P:
        alarm = "missing"
    elif _is_shift(index, distance, p_value):
        alarm = "shifted"
    elif len(after) >= LEAST_ROWS and abs(nulls[1] - nulls[0]) > NULLS_LIMIT:
        alarm = "nulls"
    return Shift(spec.name, index, distance, p_value, *nulls, unseen, alarm)


def _is_shift(index: float | None, distance: float | None, p_value: float | None) -> bool:
    if index is not None and index > PSI_LIMIT:
        return True
    return distance is not None and p_value is not None and distance > KS_LIMIT and p_value < KS_ALPHA


def _category_psi(before: pd.Series[Any], after: pd.Series[Any]) -> float:
    counts = [side.astype(str).value_counts() for side in (before, after)]
    every = counts[0].index.union(counts[1].index)
    return stability(*(np.asarray(c.reindex(every, fill_value=0), dtype=np.int64) for c in counts))
