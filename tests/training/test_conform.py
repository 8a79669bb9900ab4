"""A prepared table that breaks its contract is refused with table, column and first bad rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest

from feature_repo import features as definitions
from service.definitions import contracts
from service.errors import DataError
from service.settings import Settings
from training.conform import conform

CONTRACT = contracts(definitions)["primary"]
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def tables(prepared: Settings) -> Tables:
    found = {view.name: pd.read_parquet(prepared.features_dir / f"{view.name}.parquet") for view in CONTRACT.views}
    return {**found, "rows": pd.read_parquet(prepared.state_dir / "rows.parquet")}


def put(name: str, column: str, value: Any) -> Callable[[Tables], Tables]:
    """Put a value into the first row of a column."""

    def change(tables: Tables) -> Tables:
        table = tables[name].copy()
        table[column] = table[column].astype(object) if isinstance(value, str) or value is None else table[column]
        table.loc[table.index[0], column] = value
        return {**tables, name: table}

    return change


def late(tables: Tables) -> Tables:
    """Give a row a departure it is judged after."""
    rows = tables["rows"]
    moments = rows["scheduled_departure"].mask(rows.index == 0, rows["event_timestamp"] - timedelta(hours=1))
    return {**tables, "rows": rows.assign(scheduled_departure=moments)}


def foreseen(tables: Tables) -> Tables:
    """Let labels be known before the moment of judging."""
    rows = tables["rows"]
    return {**tables, "rows": rows.assign(label_known_at=rows["label_known_at"] - timedelta(days=1))}


def twice(tables: Tables) -> Tables:
    """Give a route two values for one moment."""
    table = tables["route_record"]
    return {**tables, "route_record": pd.concat([table, table.head(1).assign(route_outcomes_14d=7)])}


BROKEN: dict[str, tuple[Callable[[Tables], Tables], str]] = {
    "a value above its limit": (
        put("origin_weather", "temp", 500.0),
        r"origin_weather\.temp: 1 rows are above 120 \(\w{3} at 2013-01-01T\d\d:00Z: 500\.0\)",
    ),
    "a value below its limit": (put("origin_weather", "visib", -1.0), r"origin_weather\.visib: 1 rows are below 0"),
    "a null that must not be": (
        put("origin_weather", "precip", float("nan")),
        r"origin_weather\.precip: 1 rows are null",
    ),
    "a key outside its set": (put("origin_traffic", "origin", "XXX"), r"origin_traffic\.origin: 1 rows are not one of"),
    "a row without key": (put("carrier_record", "carrier", None), r"carrier_record\.carrier: 1 rows have no key"),
    "two values for one moment": (twice, r"route_record\.event_timestamp: 2 rows share key and time"),
    "a missing table": (
        lambda t: {k: v for k, v in t.items() if k != "plane_record"},
        "makes no table plane_record",
    ),
    "a missing column": (
        lambda t: {**t, "rows": t["rows"].drop(columns="distance")},
        "rows: columns distance are missing",
    ),
    "an empty table": (lambda t: {**t, "rows": t["rows"].head(0)}, "rows: has no rows"),
    "nanoseconds": (
        lambda t: {**t, "rows": t["rows"].assign(event_timestamp=t["rows"]["event_timestamp"].dt.as_unit("ns"))},
        r"rows\.event_timestamp is datetime64\[ns, UTC\], not",
    ),
    "a request judged after the fact": (late, r"rows\.scheduled_departure: 1 rows are before now"),
    "a request of another set": (put("rows", "origin", "XXX"), r"rows\.origin: 1 rows are not one of EWR, JFK, LGA"),
    "a label that is half true": (put("rows", "label", 0.5), r"rows\.label: 1 rows are not 0, 1 or null"),
    "a label known beforehand": (foreseen, r"rows\.label_known_at: \d+ rows are before the moment of judging"),
    "an id that is not unique": (
        lambda t: {**t, "rows": t["rows"].assign(request_id="same")},
        r"rows\.request_id: \d+ rows are not unique",
    ),
}


def test_the_real_tables_keep_their_contract(tables: Tables) -> None:
    conform(tables, CONTRACT)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused_by_name(name: str, tables: Tables) -> None:
    change, message = BROKEN[name]

    with pytest.raises(DataError, match=message):
        conform(change(tables), CONTRACT)
