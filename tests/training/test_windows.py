"""Window aggregates equal what a loop over the events gives."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from training.windows import MICROSECOND_UTC, grid, window_table

ZERO = pd.Timestamp("2013-01-01T00:00Z")
WINDOW = timedelta(minutes=30)

events = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 180), st.none() | st.integers(-5, 50)), min_size=1, max_size=40
)


@given(events)
def test_mean_and_count_are_those_of_the_events_in_the_window(drawn: list[tuple[str, int, int | None]]) -> None:
    frame = pd.DataFrame(drawn, columns=["key", "minute", "value"])
    frame["at"] = (ZERO + pd.to_timedelta(frame["minute"], unit="m")).astype(MICROSECOND_UTC)
    known = [(k, m, v) for k, m, v in drawn if v is not None]
    if not known:
        return

    table = window_table(frame, "key", "at", "value", grid(ZERO, ZERO + timedelta(hours=4), "10min"), {"w": WINDOW})

    seen = 0
    for key in {k for k, _, _ in known}:
        first = min(m for k, m, _ in known if k == key)
        for now in range(0, 241, 10):
            inside = [v for k, m, v in known if k == key and now - 30 < m <= now]
            row = table[(table["key"] == key) & (table["event_timestamp"] == ZERO + timedelta(minutes=now))]
            if now < first:
                assert row.empty
                continue
            seen += 1
            assert row["w_count"].item() == len(inside)
            mean = row["w_mean"].item()
            assert pd.isna(mean) if not inside else abs(mean - sum(inside) / len(inside)) < 1e-9
    assert seen == len(table)
