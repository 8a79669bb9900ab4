"""Raw data to rows and tables: instants, labels, and what is left out on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from service.errors import DataError
from tests.training.conftest import read_raw, write_raw
from training import source

YEAR = source.raw_tables()
ROWS = source.labelled_rows(YEAR)
BY_ID = ROWS.set_index("request_id")


def test_every_flight_of_the_year_becomes_one_row_with_its_own_id() -> None:
    assert len(ROWS) == 336_776
    assert ROWS["request_id"].is_unique
    assert ROWS["event_timestamp"].is_monotonic_increasing


def test_a_flight_is_judged_two_hours_before_its_scheduled_departure() -> None:
    assert ((ROWS["scheduled_departure"] - ROWS["event_timestamp"]) == pd.Timedelta(hours=2)).all()


def test_local_schedules_become_the_instants_the_data_package_gives_for_their_hour() -> None:
    flights, _, _ = read_raw()
    ids = flights["carrier"] + "-" + flights["flight"].astype(str) + "-" + flights["origin"]
    day = flights["year"].astype(str) + pd.Series(
        [f"-{m:02d}-{d:02d}-" for m, d in zip(flights["month"], flights["day"], strict=True)]
    )
    hours = pd.to_datetime(flights["time_hour"], utc=True)

    ours = BY_ID.loc[day + ids, "scheduled_departure"].dt.floor("h")

    assert (ours.to_numpy() == hours.to_numpy()).all()


@pytest.mark.parametrize(
    ("request_id", "scheduled", "known"),
    [
        # Newark to Houston, Central time: scheduled 05:15 to 08:19, 11 minutes late.
        ("2013-01-01-UA-1545-EWR", "2013-01-01T10:15Z", "2013-01-01T14:30Z"),
        # The evening before the clocks go back: 20:58 to 00:02 next day in Florida, 4 minutes early.
        ("2013-11-03-UA-371-EWR", "2013-11-04T01:58Z", "2013-11-04T04:58Z"),
    ],
)
def test_an_arrival_is_known_when_the_plane_lands_in_its_own_time_zone(
    request_id: str, scheduled: str, known: str
) -> None:
    row = BY_ID.loc[request_id]

    assert (row["scheduled_departure"], row["label_known_at"]) == (pd.Timestamp(scheduled), pd.Timestamp(known))


def test_block_times_are_plausible_for_every_flight_also_in_the_nights_the_clocks_change() -> None:
    flights = source._timed(YEAR)
    landed = flights["arrived"].notna()
    hours = (flights["arrived"] - flights["departed"]).dt.total_seconds()[landed] / 3600

    # Longer than the flight itself at 600 mph and shorter than it at 200 mph plus four hours on the ground.
    assert (hours > flights["distance"][landed] / 600).all()
    assert (hours < flights["distance"][landed] / 200 + 4).all()
    nights = flights["departure"].dt.strftime("%m-%d").isin(["03-10", "11-03", "11-04"]) & landed
    assert nights.sum() > 1500


def test_cancelled_flights_count_as_late_and_are_known_at_their_scheduled_departure() -> None:
    flights = source._timed(YEAR)
    cancelled = flights[flights["dep_time"].isna()]

    assert len(cancelled) == 8255
    assert (cancelled["label"] == 1).all()
    assert (cancelled["known_at"] == cancelled["departure"]).all()


def test_diverted_flights_have_no_label() -> None:
    flights = source._timed(YEAR)
    diverted = flights[flights["dep_time"].notna() & flights["arr_delay"].isna()]

    assert len(diverted) == 1175
    assert diverted["label"].isna().all()
    assert diverted["known_at"].isna().all()


def test_fifteen_minutes_is_late_and_fourteen_is_not() -> None:
    flights = source._timed(YEAR)

    assert (flights.loc[flights["arr_delay"] == 15, "label"] == 1).all()
    assert (flights.loc[flights["arr_delay"] == 14, "label"] == 0).all()


def test_a_missing_tail_number_tells_the_outcome_so_such_rows_are_not_fitted() -> None:
    nameless = ROWS[ROWS["tailnum"].isna()]

    assert len(nameless) == 2512
    assert (nameless["label"] == 1).all()
    assert not nameless["usable"].any()
    assert ROWS["usable"].sum() == 336_776 - 1175 - 2512


def test_the_sensor_that_reported_a_thousand_miles_an_hour_is_not_believed() -> None:
    table = source.feature_tables(YEAR)["origin_weather"]

    assert YEAR["weather"]["wind_speed"].max() > 1000
    assert table["wind_speed"].max() < 150
    assert len(table) == len(YEAR["weather"])


def test_an_hour_of_weather_is_known_when_it_has_ended() -> None:
    table = source.feature_tables(YEAR)["origin_weather"]

    assert table["event_timestamp"].min() == YEAR["weather"]["time_hour"].min() + pd.Timedelta(hours=1)


def test_tables_are_in_microseconds_utc() -> None:
    for table in source.feature_tables(YEAR).values():
        assert str(table["event_timestamp"].dtype) == "datetime64[us, UTC]"


def test_the_same_line_twice_counts_once_and_is_told(
    tmp_path: Path, raw_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flights, weather, airports = read_raw(raw_folder)
    doubled = pd.concat([flights, flights.head(50)])

    rows = source.labelled_rows(source.raw_tables(write_raw(tmp_path, doubled, weather, airports)))

    assert len(rows) == len(flights)
    assert caplog.messages == ["flights: left out 50 lines that repeat an earlier one"]


def first(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Damage the first row of a column."""
    return lambda frame: frame.assign(**{column: [value, *frame[column][1:]]})


DAMAGE: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "a flight twice with different contents": (
        lambda f: pd.concat([f, f.head(1).assign(arr_delay=99.0)], ignore_index=True),
        "flights.flight: 2 rows stand twice with different contents",
    ),
    "an unknown origin": (
        first("origin", "XXX"),
        "flights.origin: 1 rows are not one of EWR, JFK, LGA (line 2: 'XXX')",
    ),
    "a month that is none": (first("month", 13), "flights.month: 1 rows are not from 1 to 12 (line 2: 13)"),
    "a day its month does not have": (
        lambda f: f.assign(month=2, day=[30, *[1] * (len(f) - 1)], flight=range(1, len(f) + 1)).head(9000),
        "flights.day: 1 rows are not days of their month (line 2: 30)",
    ),
    "a year that is none": (first("year", None), "flights.year: 1 rows are null (line 2: nan)"),
    "half a month": (first("month", 1.5), "flights.month: 1 rows are not whole numbers (line 2: 1.5)"),
    "a time of day that is none": (
        first("sched_arr_time", 1299),
        "flights.sched_arr_time: 1 rows are no times of day (HHMM) (line 2: 1299)",
    ),
    "a schedule that contradicts its parts": (
        first("minute", 59),
        "flights.sched_dep_time: 1 rows contradict hour and minute (line 2: 515)",
    ),
    "an infinite delay": (first("arr_delay", "inf"), "flights.arr_delay: 1 rows are not"),
    "a blank tail number": (first("tailnum", " "), "flights.tailnum: 1 rows are blank or not text (line 2: ' ')"),
    "no departure at all": (
        lambda f: f.assign(dep_time=None, dep_delay=None, arr_delay=None),
        "flights.dep_time: none of",
    ),
    "text for a number": (first("distance", "far"), "flights.distance: 1 rows are not numbers (line 2: 'far')"),
    "a null where none may be": (first("carrier", None), "flights.carrier: 1 rows are null"),
    "a missing column": (lambda f: f.drop(columns="dep_delay"), "flights.csv: columns dep_delay are missing"),
    "no rows": (lambda f: f.head(0), "flights.csv: has no rows"),
    "an arrival without a departure": (
        first("dep_time", None),
        "flights.arr_delay: 1 rows arrived without having departed",
    ),
    "an airport nobody knows": (first("dest", "ZZZ"), "flights.dest: 1 rows are airports without a time zone"),
}


def test_a_time_zone_nobody_knows_and_a_broken_archive_are_named(tmp_path: Path, raw_folder: Path) -> None:
    flights, weather, airports = read_raw(raw_folder)
    folder = write_raw(tmp_path, flights, weather, first("tzone", "Mars/X")(airports))
    with pytest.raises(DataError, match=r"airports\.tzone: 1 rows are not time zones \(line 2: 'Mars/X'\)"):
        source.raw_tables(folder)

    (folder / "flights.csv.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"flights\.csv\.zip: cannot be read"):
        source.raw_tables(folder)


def test_an_airport_in_two_time_zones_and_an_hour_that_is_no_time_are_named(tmp_path: Path, raw_folder: Path) -> None:
    flights, weather, airports = read_raw(raw_folder)
    twice = pd.concat([airports, airports[airports["faa"] == "IAH"].assign(tzone="America/New_York")])
    with pytest.raises(DataError, match=r"airports\.faa: 2 rows stand twice \(line \d+: 'IAH'"):
        source.raw_tables(write_raw(tmp_path / "twice", flights, weather, twice))

    with pytest.raises(DataError, match=r"weather\.time_hour: 1 rows are not times \(line 2: 'noon'\)"):
        source.raw_tables(write_raw(tmp_path / "noon", flights, first("time_hour", "noon")(weather), airports))


def test_weather_beyond_what_a_sensor_can_read_is_damage(tmp_path: Path, raw_folder: Path) -> None:
    flights, weather, airports = read_raw(raw_folder)

    with pytest.raises(DataError, match=r"weather\.humid: 1 rows are not from 0 to 100 \(line 2: 300"):
        source.raw_tables(write_raw(tmp_path, flights, first("humid", 300.0)(weather), airports))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_table_column_and_first_rows(name: str, tmp_path: Path, raw_folder: Path) -> None:
    flights, weather, airports = read_raw(raw_folder)
    damage, message = DAMAGE[name]

    with pytest.raises(DataError, match=re.escape(message)):
        source.labelled_rows(source.raw_tables(write_raw(tmp_path, damage(flights), weather, airports)))
