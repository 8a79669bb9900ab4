"""Aggregates over moving windows of events, evaluated on a grid of moments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MICROSECOND_UTC = pd.DatetimeTZDtype(unit="us", tz="UTC")  # type: ignore[arg-type]  # the stubs know ns only


def micros(moments: pd.Series[Any] | pd.DatetimeIndex) -> npt.NDArray[np.int64]:
    """Return instants as microseconds since the epoch."""
    return pd.DatetimeIndex(moments).to_numpy(dtype="datetime64[us]").astype(np.int64)


def window_table(
    events: pd.DataFrame, key: str, at: str, value: str, grid: pd.DatetimeIndex, windows: Mapping[str, timedelta]
) -> pd.DataFrame:
    """Mean and count of a value over the events in (t - window, t], for every key and every t of the grid.

    Args:
        events: one row per event; rows with a null key, time or value are left out.
        key, at, value: its columns; ``at`` is when the event became known.
        grid: the moments, UTC, ascending.
        windows: name to length.

    Returns:
        One row per key and moment from the key's first event on: the key, ``event_timestamp``, and per window
        ``<name>_mean`` (NaN when there is no event) and ``<name>_count``.
    """
    known = events[[key, at, value]].dropna().sort_values(at, kind="stable")
    moments = micros(grid)
    tables = []
    for name, group in known.groupby(key, sort=True):
        times, totals = micros(group[at]), np.concatenate([[0.0], np.cumsum(group[value].to_numpy(dtype=float))])
        # Before its first event nothing is known of a key, not even that it exists.
        after = moments[moments >= times[0]]
        columns: dict[str, Any] = {key: name, "event_timestamp": grid[len(moments) - len(after) :]}
        last = np.searchsorted(times, after, side="right")
        for window, length in windows.items():
            first = np.searchsorted(times, after - int(length / timedelta(microseconds=1)), side="right")
            count = last - first
            with np.errstate(invalid="ignore"):
                columns[f"{window}_mean"] = np.where(
                    count > 0, (totals[last] - totals[first]) / np.maximum(count, 1), np.nan
                )
            columns[f"{window}_count"] = count.astype(np.int64)
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    table["event_timestamp"] = table["event_timestamp"].astype(MICROSECOND_UTC)
    return table


def grid(start: pd.Timestamp, end: pd.Timestamp, step: str) -> pd.DatetimeIndex:
    """Moments every ``step`` from ``start`` to ``end``, both included, in UTC."""
    return pd.date_range(start, end, freq=step, tz="UTC").as_unit("us")
