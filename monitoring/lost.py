"""Whether what the shadow lost differs from what it kept: under load, what is lost is seldom a random sample. Pure."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from monitoring.campaign import is_scored
from monitoring.evidence import LostDifference, LostTraffic
from monitoring.statistics import Floats, floats, log_losses, standardized_shift

_LEAST = 10
_CONFIDENCE = 0.975


def lost_traffic(frame: pd.DataFrame, slices: tuple[str, ...]) -> LostTraffic:
    """Compare lost with kept requests by all that is known of both: the primary's answers, labels, slices.

    Args:
        frame: the campaign's rows (see :class:`monitoring.pairing.Paired`).
        slices: columns of ``frame`` whose values' shares are compared.
    """
    sampled = frame["shadow_sampled"].fillna(value=False).astype(bool)
    # Without the other columns: vectors are most of a frame.
    needed = dict.fromkeys(("shadow_outcome", "shadow_prediction", "prediction", "label", *slices))
    asked = frame.loc[sampled & frame["role"].eq("primary"), [name for name in needed if name in frame]]
    scored = is_scored(asked)
    lost, kept = asked[~scored], asked[scored]
    if lost.empty or kept.empty:
        return LostTraffic(len(lost), len(kept), None, None, _loss(lost), _loss(kept), ())
    compared = _compared(lost, kept, slices)
    # One bound for all comparisons at once (Bonferroni).
    z = float(stats.norm.ppf(1 - (1 - _CONFIDENCE) / len(compared)))
    found = []
    for what, a, b in compared:
        shift, error = standardized_shift(a, b)
        means = float(a.mean()), float(b.mean())
        found.append(LostDifference(what, *means, len(a), shift, max(0.0, shift - z * error)))
    found.sort(key=lambda d: (-d.shift_low, -d.shift))
    score = next(d for d in found if d.what == "primary's score")
    return LostTraffic(len(lost), len(kept), score.shift, score.shift_low, _loss(lost), _loss(kept), tuple(found))


def _compared(lost: pd.DataFrame, kept: pd.DataFrame, slices: tuple[str, ...]) -> list[tuple[str, Floats, Floats]]:
    scores = floats(lost["prediction"]), floats(kept["prediction"])
    # The loss a calibrated model expects of its own answer: how hard it takes the request to be.
    out = [("primary's score", *scores), ("expected loss", _entropy(scores[0]), _entropy(scores[1]))]
    known = lost[lost["label"].notna()], kept[kept["label"].notna()]
    if min(len(known[0]), len(known[1])) >= _LEAST:
        labels = floats(known[0]["label"]), floats(known[1]["label"])
        losses = (log_losses(labels[side], floats(known[side]["prediction"])) for side in (0, 1))
        first, second = losses
        out += [("label", *labels), ("primary's log loss", first, second)]
    for column in slices:
        name = column.split(".", 1)[-1]
        for value, n in lost[column].value_counts().items():
            if n >= _LEAST:
                one, two = (floats(side[column] == value) for side in (lost, kept))
                out.append((f"share of {name} {value}", one, two))
    return out


def _entropy(scores: Floats) -> Floats:
    return log_losses(scores, scores)


def _loss(rows: pd.DataFrame) -> float | None:
    labelled = rows[rows["label"].notna()]
    if labelled.empty:
        return None
    found = float(log_losses(floats(labelled["label"]), floats(labelled["prediction"])).mean())
    return found if math.isfinite(found) else None
