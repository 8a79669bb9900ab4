"""Bad requests are told what to change; good ones come through unharmed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.clock import ManualClock
from service.door import Door
from service.errors import BadRequest
from tests.bundle import NOW, REQUEST, primary_contract

DOOR = Door(primary_contract(), ManualClock(NOW), batch_limit=3)


def refused(body: bytes) -> BadRequest:
    """The refusal of a body."""
    with pytest.raises(BadRequest) as caught:
        DOOR.one(body)
    return caught.value


def changed(**changes: Any) -> bytes:
    """A good request with some fields changed; ``...`` removes one."""
    merged = {**REQUEST, **changes}
    return json.dumps({k: v for k, v in merged.items() if v is not ...}).encode()


def test_a_good_request_comes_through_with_its_time_in_utc() -> None:
    request = DOOR.one(changed(scheduled_departure="2013-10-01T10:00:00-04:00", distance=1400))

    assert request["scheduled_departure"] == datetime(2013, 10, 1, 14, 0, tzinfo=UTC)
    assert (request["distance"], request["tailnum"], request["request_id"]) == (1400.0, "N14228", None)


@pytest.mark.parametrize(
    ("body", "status", "field", "message"),
    [
        (b'{"origin":', 400, "body", "is not JSON"),
        (b"", 400, "body", "is not JSON"),
        (b"\xff\xfe", 400, "body", "is not JSON"),
        (b"[1, 2]", 422, "body", "should be an object"),
        (b"null", 422, "body", "should be an object"),
        (changed(origin="XXX"), 422, "origin", "origin=XXX is wrong (Input should be 'EWR', 'JFK' or 'LGA'); send"),
        (changed(origin=None), 422, "origin", "send one of EWR, JFK, LGA"),
        (changed(carrier=...), 422, "carrier", "carrier is missing; send a string"),
        (changed(carrier=7), 422, "carrier", "carrier=7 is wrong (Input should be a valid string); send a string"),
        (changed(distance=float("nan")), 422, "distance", "distance=nan is wrong"),
        (changed(distance=float("inf")), 422, "distance", "send a finite number from 1 to 6000"),
        (changed(distance=0), 422, "distance", "send a finite number from 1 to 6000"),
        (changed(distance="1400"), 422, "distance", "distance=1400 is wrong"),
        (changed(hour_flights=20.5), 422, "hour_flights", "send a whole number from 0 to 200"),
        (changed(hour_flights=True), 422, "hour_flights", "valid integer"),
        (changed(scheduled_departure="2013-10-01T10:00:00+00:00"), 422, "scheduled_departure", "is before 2013-10-01"),
        (changed(scheduled_departure="2013-10-09T10:00:00+00:00"), 422, "scheduled_departure", "send an earlier time"),
        (changed(scheduled_departure="2013-10-01T14:00:00"), 422, "scheduled_departure", "ISO 8601 time with offset"),
        (changed(scheduled_departure="soon"), 422, "scheduled_departure", "ISO 8601 time with offset"),
        (changed(scheduled_departure="9999-12-31T23:59:59-05:00"), 422, "scheduled_departure", "is no time in UTC"),
        (changed(scheduled_departure="0001-01-01T00:00:00+05:00"), 422, "scheduled_departure", "is no time in UTC"),
        (changed(hour_flights=2**70), 422, "hour_flights", "send a whole number from 0 to 200"),
        (changed(tail="N1"), 422, "tail", "tail=N1 is not a field of this request; remove it"),
        (changed(request_id="with space"), 422, "request_id", "request_id=with space is wrong"),
        (changed(request_id=""), 422, "request_id", "is wrong"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_field_value_and_fix(body: bytes, status: int, field: str, message: str) -> None:
    error = refused(body)

    assert error.status == status
    assert [p["field"] for p in error.problems] == [field]
    assert message in str(error)


def test_every_wrong_field_is_named_at_once() -> None:
    error = refused(changed(origin="XXX", carrier=..., distance=-1))

    assert {p["field"] for p in error.problems} == {"origin", "carrier", "distance"}


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(str(refused(changed(origin="X" * 500)))) < 300


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_whatever_raise_anything_but_a_refusal(body: bytes) -> None:
    error = refused(body)

    assert 400 <= error.status < 500
    assert error.problems


@pytest.mark.parametrize("body", [b"{}", b"[]", b"[1,2,3,4]", b"7", b"[NaN]", b"[" * 300 + b"]" * 300])
def test_a_batch_that_is_no_list_of_the_allowed_length_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DOOR.rows(body)


def test_labels_come_alone_or_in_a_list() -> None:
    one = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}

    assert [x.label for x in DOOR.labels(json.dumps(one).encode())] == [1.0]
    assert [x.request_id for x in DOOR.labels(json.dumps([one, {**one, "request_id": "b"}]).encode())] == ["a", "b"]


@pytest.mark.parametrize("body", [b'{"a":1},{"b":2}', b"", b"7", b'[{"request_id": "a"}', b"[" * 300 + b"]" * 300])
def test_labels_that_are_not_json_objects_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DOOR.labels(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", 0.5), ("label", None), ("known_at", "2013-10-01"), ("known_at", "0001-01-01T00:00+05:00")],
)
def test_a_label_is_zero_or_one_and_dated(field: str, value: Any) -> None:
    label = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00", field: value}

    with pytest.raises(BadRequest, match=field):
        DOOR.labels(json.dumps(label).encode())


def test_a_labels_time_is_kept_in_utc() -> None:
    (label,) = DOOR.labels(b'{"request_id": "a", "label": 0, "known_at": "2013-10-01T23:30:00+05:30"}')

    assert label.known_at.isoformat() == "2013-10-01T18:00:00+00:00"


def test_one_wrong_label_refuses_the_list_and_names_its_place() -> None:
    good = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}

    with pytest.raises(BadRequest, match=r"\[1\]\.label=2 is wrong"):
        DOOR.labels(json.dumps([good, {**good, "label": 2}]).encode())
