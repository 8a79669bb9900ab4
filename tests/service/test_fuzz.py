"""Whatever arrives is a request or a refusal; what the contract allows is a request, value for value."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from service.clock import ManualClock
from service.contract import FieldSpec
from service.door import Door, Label
from service.errors import BadRequest
from tests.bundle import NOW, REQUEST, primary_contract

CONTRACT = primary_contract()
DOOR = Door(CONTRACT, ManualClock(NOW), batch_limit=50)
NAMES = [spec.name for spec in CONTRACT.request_fields]
LABEL = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}

ODD_TEXT = st.text() | st.sampled_from(["\ud800", "\udfff\ud800", "\x00", "\u202e", "NaN", "1e999", "é" * 300])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 2**200, 10**4299, 1e308, -0.0, 5e-324])
    | st.floats()
    | ODD_TEXT
    | st.datetimes(timezones=st.timezones()).map(datetime.isoformat)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT, inner, max_size=4), max_leaves=12
)
# Around the limits of every timestamp, in any zone, and at both ends of what a calendar holds.
MOMENTS = st.sampled_from(["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"]) | st.builds(
    lambda moment, hours: moment.astimezone(timezone(timedelta(hours=hours))).isoformat(),
    st.datetimes(datetime(2013, 9, 1), datetime(2013, 11, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),  # noqa: DTZ001
    st.integers(-14, 14),
)
TIMED = [spec.name for spec in CONTRACT.request_fields if spec.dtype == "timestamp"]
# Often a good request with something wrong about it.
ALMOST = st.builds(
    lambda moments, changes, gone: {k: v for k, v in {**REQUEST, **moments, **changes}.items() if k not in gone},
    st.dictionaries(st.sampled_from(TIMED), MOMENTS),
    st.dictionaries(st.sampled_from([*NAMES, "request_id"]) | ODD_TEXT, VALUES, max_size=3),
    st.sets(st.sampled_from(NAMES), max_size=1),
)


def encoded(value: Any, *, ascii_only: bool) -> bytes:
    """JSON as Python writes it, which is more than JSON: NaN, lone surrogates, whole numbers of any length."""
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def repeated(value: dict[str, Any]) -> bytes:
    """An object with every member written twice, the second time as null."""
    body = json.dumps(value)[1:-1]
    again = json.dumps(dict.fromkeys(value))[1:-1]
    return f"{{{body}{',' if body else ''}{again}}}".encode()


def spoiled(value: dict[str, Any], at: int, junk: bytes) -> bytes:
    """An object with some bytes put in."""
    body = encoded(value, ascii_only=False)
    return body[:at] + junk + body[at:]


BODIES = (
    st.binary(max_size=300)
    | st.builds(lambda value, flag: encoded(value, ascii_only=flag), VALUES | ALMOST, st.booleans())
    | ALMOST.map(repeated)
    | st.builds(lambda value, cut: encoded(value, ascii_only=True)[:cut], ALMOST, st.integers(0, 300))
    | st.builds(spoiled, ALMOST, st.integers(0, 500), st.binary(min_size=1, max_size=3))
    | st.builds(
        lambda opened, depth: opened * depth, st.sampled_from([b"[", b'{"a":', b'[{"a":']), st.integers(1, 5000)
    )
    | st.builds(lambda depth: b'{"origin":' + b"[" * depth + b"]" * depth + b"}", st.integers(1, 5000))
    | st.builds(lambda depth: b"[" * depth + b"]" * depth, st.integers(1, 2000))
    | st.builds(lambda digits: b'{"distance":' + b"9" * digits + b"}", st.integers(1, 10_000))
)


def refused(error: BadRequest) -> None:
    """A refusal a caller can read: 4xx, problems, short enough, and sendable as JSON."""
    assert 400 <= error.status < 500
    assert error.problems
    assert all(set(p) == {"field", "value", "message"} for p in error.problems)
    orjson.dumps({"error": str(error), "problems": error.problems})


@settings(max_examples=700, deadline=None)
@given(BODIES)
def test_a_request_is_parsed_or_refused(body: bytes) -> None:
    try:
        parsed = DOOR.one(body)
    except BadRequest as error:
        refused(error)
        return

    orjson.dumps(parsed)  # the log can hold it
    assert set(parsed) == {*NAMES, "request_id"}
    for spec in CONTRACT.request_fields:
        assert fits(spec, parsed[spec.name]), spec.name


@settings(max_examples=300, deadline=None)
@given(st.one_of(BODIES, st.lists(ALMOST | VALUES, max_size=3).map(lambda rows: encoded(rows, ascii_only=True))))
def test_a_batch_is_split_into_rows_that_are_parsed_or_refused(body: bytes) -> None:
    try:
        rows = DOOR.rows(body)
    except BadRequest as error:
        refused(error)
        return

    assert rows == [orjson.dumps(row) for row in orjson.loads(body)]
    for row in rows:
        test_a_request_is_parsed_or_refused.hypothesis.inner_test(row)  # type: ignore[attr-defined]


@settings(max_examples=300, deadline=None)
@given(
    BODIES
    | st.lists(
        st.dictionaries(st.sampled_from([*LABEL, "else"]), VALUES, max_size=4).map(lambda d: {**LABEL, **d}), max_size=3
    ).map(lambda rows: encoded(rows, ascii_only=True))
)
def test_labels_are_taken_or_refused(body: bytes) -> None:
    try:
        labels = DOOR.labels(body)
    except BadRequest as error:
        refused(error)
        return

    assert {type(label) for label in labels} == {Label}
    assert {label.label for label in labels} <= {0, 1}
    orjson.dumps([label.model_dump() for label in labels])


def fits(spec: FieldSpec, value: Any) -> bool:
    """Whether a value that came through is one the contract allows."""
    if value is None:
        return spec.nullable
    if isinstance(value, datetime):
        soonest = NOW + spec.earliest if spec.earliest is not None else value
        latest = NOW + spec.latest if spec.latest is not None else value
        return spec.dtype == "timestamp" and value.utcoffset() == timedelta(0) and soonest <= value <= latest
    if spec.allowed:
        return value in spec.allowed
    low: Any = value if spec.minimum is None else spec.minimum
    high: Any = value if spec.maximum is None else spec.maximum
    return type(value) is {"float": float, "int": int, "str": str, "bool": bool}[spec.dtype] and bool(
        low <= value <= high
    )


def valid(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """Every value of a field the contract allows."""
    return _plain(spec) | st.none() if spec.nullable else _plain(spec)


def _plain(spec: FieldSpec) -> st.SearchStrategy[Any]:
    if spec.allowed:
        return st.sampled_from(spec.allowed)
    low, high = spec.minimum, spec.maximum
    if spec.dtype == "float":
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if spec.dtype == "int":
        return st.integers(int(-(2**63) if low is None else low), int(2**63 - 1 if high is None else high))
    if spec.dtype == "bool":
        return st.booleans()
    if spec.dtype == "str":
        return st.text(st.characters(exclude_categories=["Cs"]))
    begin = NOW + (spec.earliest if spec.earliest is not None else timedelta(days=-9999))
    end = NOW + (spec.latest if spec.latest is not None else timedelta(days=9999))
    zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    return st.builds(
        lambda moment, zone: moment.replace(tzinfo=UTC).astimezone(zone),
        st.datetimes(begin.replace(tzinfo=None), end.replace(tzinfo=None)),
        zones,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {spec.name: valid(spec) for spec in CONTRACT.request_fields},
        optional={"request_id": st.none() | st.from_regex(r"\A[\x21-\x7e]{1,128}\Z")},
    )
)
def test_what_the_contract_allows_comes_through_value_for_value(request: dict[str, Any]) -> None:
    body = orjson.dumps(request)

    parsed = DOOR.one(body)

    assert parsed == {"request_id": None, **request}
    assert [type(v) for k, v in parsed.items() if k != "request_id"] == [type(request[name]) for name in NAMES]
    assert DOOR.one(DOOR.rows(b"[" + body + b"]")[0]) == parsed
