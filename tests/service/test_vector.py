"""The one vector and everything that can be wrong with it."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import pytest

from service.features import Stored
from service.vector import Vector, build_vector, describe
from tests.bundle import NOW, parsed_request, primary_contract
from tests.service.conftest import stored_fresh

CONTRACT = primary_contract()


def build(view: str | None = None, at: datetime | None = None, **changes: Any) -> Vector:
    """A vector from fresh values with some of one view's changed, or its event time."""
    full = stored_fresh()
    values = {name: ({**row, **changes} if name == view else row) for name, row in full.values.items()}
    times = {**full.event_times, **({view: at} if view and at else {})}
    return build_vector(CONTRACT, parsed_request(), Stored(values, times), NOW)


def kinds(vector: Vector) -> list[tuple[str, str]]:
    return [(v.feature, v.kind) for v in vector.violations]


def test_a_good_vector_holds_every_feature_in_model_order_and_no_violation() -> None:
    vector = build()

    assert tuple(vector.values) == CONTRACT.features
    assert vector.violations == ()
    assert vector.values["plane_idle_h"] == 7.0


@pytest.mark.parametrize(
    ("view", "changes", "expected"),
    [
        ("origin_weather", {"visib": None}, ("visib", "null")),
        ("origin_weather", {"visib": math.nan}, ("visib", "null")),
        ("origin_weather", {"temp": 200.0}, ("temp", "range")),
        ("origin_weather", {"temp": -300.0}, ("temp", "range")),
        ("origin_weather", {"temp": math.inf}, ("temp", "range")),
        ("origin_weather", {"temp": "hot"}, ("temp", "type")),
        ("origin_traffic", {"origin_departures_3h": 3.5}, ("origin_departures_3h", "type")),
        ("origin_traffic", {"origin_departures_3h": True}, ("origin_departures_3h", "type")),
        ("origin_traffic", {"origin_departures_3h": -1}, ("origin_departures_3h", "range")),
    ],
)
def test_each_kind_of_fault_is_told_apart(view: str, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert kinds(build(view, **changes)) == [expected]


def test_a_nullable_feature_may_be_null() -> None:
    assert build("origin_weather", temp=None).violations == ()


def test_freshness_is_judged_on_the_values_own_event_time() -> None:
    limit = timedelta(minutes=45)

    assert build("origin_traffic", NOW - limit).violations == ()
    assert kinds(build("origin_traffic", NOW - limit - timedelta(seconds=1))) == [("origin_traffic", "stale")]


def test_a_value_older_than_its_ttl_is_null_as_in_training() -> None:
    stale = build("origin_traffic", NOW - timedelta(minutes=119))
    expired = build("origin_traffic", NOW - timedelta(minutes=121))

    assert stale.values["origin_departures_3h"] == 40
    assert expired.values["origin_departures_3h"] is None
    assert kinds(expired) == [("origin_traffic", "stale")]


def test_a_value_from_the_future_is_a_violation_and_small_clock_skew_is_not() -> None:
    assert build("origin_traffic", NOW + timedelta(minutes=1)).violations == ()
    future = build("origin_traffic", NOW + timedelta(minutes=10))
    assert kinds(future) == [("origin_traffic", "stale")]
    assert future.values["origin_departures_3h"] is None


def test_a_function_that_raises_costs_its_features_not_the_answer() -> None:
    request = parsed_request(distance="far")

    vector = build_vector(CONTRACT, request, stored_fresh(), NOW)

    assert vector.values["trip_distance"] is None
    assert ("trip_distance", "null") in kinds(vector)
    assert not vector.usable


def test_an_empty_store_yields_one_violation_a_view_and_no_exception() -> None:
    vector = build_vector(CONTRACT, parsed_request(), Stored(), NOW)

    assert kinds(vector) == [(view.name, "missing") for view in CONTRACT.views]
    assert vector.values["dep_hour"] == 10


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(hours=3, minutes=12), "3 h 12 min"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(days=12, hours=4, minutes=5), "12 d 4 h"),
        (timedelta(0), "0 s"),
    ],
)
def test_durations_are_written_for_people(span: timedelta, text: str) -> None:
    assert describe(span) == text
