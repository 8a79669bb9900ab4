"""What is known of a model when it is promoted: its time as shadow, and the primary it replaces. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from deploy.watch_scores import Scores, tabled
from monitoring.campaign import valid_scores
from monitoring.compare import LEAST_CALLS
from monitoring.statistics import floats

# Reasons that are the primary's own doing; a feature store that is away is not.
FAILURES = ("primary_timeout", "primary_error", "primary_invalid_output", "primary_absent", "circuit_open")
_SHADOW_FAILURES = ("timeout", "error", "invalid_output", "circuit_open")


@dataclass(frozen=True)
class Expected:
    """What speaks for a model when its watch opens; None where nothing is known.

    Attributes:
        rehearsed: requests it scored as shadow.
        shadow_failures, replaced_failures: share of its own failures, and of the replaced primary's.
        replaced_fallbacks: share of requests the replaced primary did not answer, for whatever reason.
        shadow_p95, replaced_p95: milliseconds of a call.
        lookup_p95: milliseconds of a feature lookup, which no model has a part in.
        scores, replaced_scores: both models' scores before.
    """

    rehearsed: int = 0
    shadow_failures: float | None = None
    replaced_failures: float | None = None
    replaced_fallbacks: float | None = None
    shadow_p95: float | None = None
    replaced_p95: float | None = None
    lookup_p95: float | None = None
    scores: Scores | None = None
    replaced_scores: Scores | None = None


def expected(
    predictions: pd.DataFrame,
    shadow: pd.DataFrame,
    promoted: str,
    replaced: str,
    since: datetime,
    slot: str | None,
    began: datetime | None = None,
) -> Expected:
    """Gather what is known of a model from before it was promoted.

    Args:
        predictions, shadow: the logs (:mod:`monitoring.export`).
        promoted, replaced: digests.
        since: when it was promoted.
        slot: where it rehearsed.
        began: when the replaced model began to play; None: at any time.
    """
    lines = shadow[shadow["at"] <= since]
    if "shadow" in lines and slot is not None:
        lines = lines[lines["shadow"].isna() | lines["shadow"].eq(slot)]
    ours = lines["model_digest"].eq(promoted)
    scored = lines[ours & lines["outcome"].eq("scored") & valid_scores(lines["prediction"])]
    rows = untreated(predictions[predictions["at"] <= since])
    if began is not None:
        rows = rows[rows["at"] > began]
    if not scored.empty:
        # What another pair of models did is another story.
        rows = rows[rows["at"] >= scored["at"].min()]
        lines = lines[lines["at"] >= scored["at"].min()]
    old = rows[rows["role"].eq("primary") & rows["model_digest"].eq(replaced)]
    single = scored.loc[scored["batch"].eq(1), "latency_ms"]
    missed = lines["reason"].isin(_SHADOW_FAILURES)
    return Expected(
        rehearsed=len(scored),
        shadow_failures=float(missed.sum()) / len(lines) if len(scored) else None,
        replaced_failures=failed(rows).mean() if len(old) else None,
        replaced_fallbacks=float(rows["role"].ne("primary").mean()) if len(old) else None,
        shadow_p95=p95(single),
        replaced_p95=p95(old["ms.primary"]),
        lookup_p95=p95(old["ms.lookup"]),
        scores=tabled(scored["at"], floats(scored["prediction"])),
        replaced_scores=tabled(old["at"], floats(old["prediction"])),
    )


def untreated(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out what another model answered for a split."""
    return rows[rows["arm"].ne("treatment")] if "arm" in rows else rows


def reasons(rows: pd.DataFrame) -> pd.Series:
    """Why the primary did not answer: the first of two reasons when the fallback failed too."""
    reason = rows["fallback_reason"].fillna("").astype(str)
    return reason.str.removeprefix("both_failed: ").str.split(",").str[0]


def failed(rows: pd.DataFrame) -> pd.Series:
    """Whether the primary failed at a request, by its own doing."""
    return rows["role"].ne("primary") & reasons(rows).isin(FAILURES)


def p95(milliseconds: pd.Series) -> float | None:
    """95th percentile; None of too few."""
    values = floats(milliseconds.dropna())
    return float(np.percentile(values, 95)) if len(values) >= LEAST_CALLS else None
