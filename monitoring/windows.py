"""Cuts the prediction log into windows of the clock, by the model that was at work. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Clocks of several machines differ a little; a record further ahead than this has a wrong time.
TOLERANCE = timedelta(minutes=5)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Plan:
    """How the log is cut.

    Attributes:
        length: of one window; windows begin at multiples of it since 1970 (UTC).
        now: a window counts when it is over by then.
        oldest: records older than this are set aside.
    """

    length: timedelta
    now: datetime
    oldest: timedelta

    def starts(self, window: int) -> datetime:
        """When a window begins."""
        return EPOCH + window * self.length

    def ends(self, window: int) -> datetime:
        """When a window is over."""
        return EPOCH + (window + 1) * self.length

    @property
    def finished(self) -> int:
        """The newest window that is over."""
        return (self.now - EPOCH) // self.length - 1


@dataclass(frozen=True)
class Cut:
    """The log in windows.

    Attributes:
        frame: the records that lie in finished windows in order of time, with ``window`` (its number) and ``model``
            (digest of the primary at work; null when none ever answered).
        future: records dated after now: some machine's clock is ahead.
        past: records older than the plan's ``oldest``.
        running: records of a window that is not over.
        repeated: records that repeat a request id.
    """

    frame: pd.DataFrame
    future: int
    past: int
    running: int
    repeated: int


def cut(frame: pd.DataFrame, plan: Plan) -> Cut:
    """Sort records into windows; whose time cannot be right is counted and set aside.

    A record that the primary did not answer counts for the primary that answered last before it, so that a window in
    which models changed is split in two and a fallback's requests stay with the model they were meant for.
    """
    at = micros(frame["at"])
    future = at > _us(plan.now - EPOCH + TOLERANCE)
    past = at < _us(plan.now - EPOCH - plan.oldest)
    window = at // _us(plan.length)
    over = window <= plan.finished
    repeated = frame["request_id"].duplicated().to_numpy()
    kept = ~future & ~past & ~repeated
    rows = np.flatnonzero(kept & over)
    rows = rows[np.argsort(at[rows], kind="stable")]
    # All rows wanted and in order is the usual case; a copy of a year's log is not free.
    found = frame if len(rows) == len(frame) and bool((np.diff(rows) == 1).all()) else frame.iloc[rows]
    found = found.assign(window=window[rows])
    answered = found["model_digest"].where(found["role"].eq("primary").to_numpy())
    found["model"] = answered.ffill().bfill()
    return Cut(found, int(future.sum()), int((past & ~future).sum()), int((kept & ~over).sum()), int(repeated.sum()))


def micros(times: pd.Series[Any]) -> Ints:
    """Microseconds since 1970."""
    return np.asarray(times.dt.as_unit("us").astype("int64"), dtype=np.int64)


def period(length: timedelta) -> int:
    """Windows after which things repeat: days in a week, or windows in a day."""
    day = timedelta(days=1)
    if length >= day:
        return 7 if length == day else 1
    return max(1, day // length)


def _us(span: timedelta) -> int:
    return span // _MICROSECOND
