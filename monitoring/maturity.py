"""How much of the truth has arrived, and until when it is complete. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from monitoring.labels import LabelNotes
from service.contract import duration

# The watermark looks back so far: one lost day of long ago does not hold it, and one lucky hour does not move it.
REACH = timedelta(days=1)
_RECENT = timedelta(days=7)
_LEAST = 20


def matures(given: str | None, hours: float) -> timedelta:
    """Age at which a label should have arrived: what ``--maturity`` says (``36h``), else the setting's hours.

    Raises:
        ContractError: when what is given is no duration.
    """
    return duration(given, "--maturity") if given else timedelta(hours=hours)


@dataclass(frozen=True)
class Maturity:
    """How far labels have come.

    Attributes:
        predictions, labelled: all of them, and those with a label that counts.
        coverage: share with a label; ``mature_coverage`` of those old enough. None when there are none.
        watermark: the newest prediction in whose last day as many had labels as count as complete.
        lag: seconds from prediction to truth, median of the labels that became known in the last seven days.
        orphans: requests labelled that no prediction in the log asked about.
        days: per day ``day, predictions, labelled``.
    """

    predictions: int
    labelled: int
    coverage: float | None
    mature_coverage: float | None
    watermark: datetime | None
    lag: float | None
    orphans: int
    days: pd.DataFrame


def maturity(
    predictions: pd.DataFrame, truth: pd.DataFrame, notes: LabelNotes, now: datetime, age: timedelta, complete: float
) -> Maturity:
    """Say how much of the truth is there.

    Args:
        predictions: ``request_id, at``, each request once.
        truth, notes: what :func:`monitoring.labels.resolve` returns.
        age: at which a prediction's label should have arrived.
        complete: share of labels from which a stretch counts as complete, 0 to 1.
    """
    rows = predictions[["request_id", "at"]].merge(truth[["request_id", "known_at"]], on="request_id", how="left")
    rows = rows[rows["at"] <= pd.Timestamp(now)].sort_values("at", kind="stable")
    has = rows["known_at"].notna()
    old = rows["at"] <= pd.Timestamp(now - age)
    recent = has & (rows["known_at"] > pd.Timestamp(now - _RECENT))
    lags = (rows["known_at"] - rows["at"])[recent if recent.any() else has].dt.total_seconds()
    daily = has.groupby(rows["at"].dt.floor("D")).agg(["size", "sum"])
    days = pd.DataFrame(
        {"day": daily.index, "predictions": daily["size"].to_numpy(), "labelled": daily["sum"].to_numpy()}
    )
    return Maturity(
        len(rows), int(has.sum()), _share(has), _share(has[old]), _watermark(rows["at"], has.to_numpy(), complete),
        float(lags.median()) if len(lags) else None, notes.orphans, days,
    )  # fmt: skip


def _share(has: pd.Series) -> float | None:
    return float(has.mean()) if len(has) else None


def _watermark(at: pd.Series, has: np.ndarray[tuple[int], np.dtype[np.bool_]], complete: float) -> datetime | None:
    times = at.to_numpy(dtype="datetime64[us]")
    first = np.searchsorted(times, times - np.timedelta64(REACH), side="right")
    known = np.concatenate([[0], np.cumsum(has)])
    rows = np.arange(1, len(times) + 1) - first
    share = (known[1:] - known[first]) / np.maximum(rows, 1)
    good = np.flatnonzero((share >= complete) & (rows >= min(_LEAST, len(times))))
    return at.iloc[good[-1]].to_pydatetime() if len(good) else None
