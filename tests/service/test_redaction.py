"""Values that are not to be kept are in no line of the log, and everybody else still gets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from service.contract import Contract, FieldSpec
from service.door import request_model
from service.errors import NotReady
from service.fakes import FakeRunner, MemoryLog
from service.features import Stored
from service.prediction_log import SegmentLog
from service.redaction import redacted, redaction_of
from service.routing import Answer, Budget, Router
from service.vector import build_vector
from tests.bundle import NOW, STORED, parsed_request, primary_contract
from tests.service.conftest import Stage

CONTRACT = primary_contract()
KEY = SecretStr("k" * 32)
NO_KEY = SecretStr("")
FIELDS = [spec.name for spec in CONTRACT.request_fields]
NAMES = sorted({*FIELDS, *CONTRACT.features})


def record_of(request: Mapping[str, Any], stored: Stored, contract: Contract = CONTRACT) -> dict[str, Any]:
    """A prediction record as the router makes it."""
    vector = build_vector(contract, request, stored, NOW)
    return {
        "request_id": "r1",
        "at": NOW,
        "request": dict(request),
        "vector": vector.values,
        "event_times": vector.event_times,
        "prediction": 0.25,
        "violations": [{"feature": v.feature, "kind": v.kind, "message": v.message} for v in vector.violations],
    }


def kept(names: str, key: SecretStr, record: Mapping[str, Any], contract: Contract = CONTRACT) -> dict[str, Any]:
    """What the log is given of a record."""
    log = MemoryLog()
    assert redacted(log, contract, names, key).append(record)
    return log.records[0]


def test_nothing_named_is_the_same_log() -> None:
    log = MemoryLog()

    assert redacted(log, CONTRACT, " , ", NO_KEY) is log


def test_without_a_key_the_value_is_gone_from_request_and_vector() -> None:
    record = record_of(parsed_request(), Stored(STORED, dict.fromkeys(STORED, NOW)))

    found = kept("origin, tailnum,temp", NO_KEY, record)

    assert found["redacted"] == ("origin", "tailnum", "temp")
    assert set(record["request"]) - set(found["request"]) == {"origin", "tailnum"}
    assert set(record["vector"]) - set(found["vector"]) == {"origin", "temp"}
    assert found["vector"]["carrier"] == "UA"


def test_with_a_key_identifiers_become_pseudonyms_and_quantities_go() -> None:
    record = record_of(parsed_request(), Stored(STORED, dict.fromkeys(STORED, NOW)))

    found = kept("origin,carrier,temp", KEY, record)

    assert found["request"]["origin"] == found["vector"]["origin"]
    assert found["request"]["origin"].startswith("~")
    assert len(found["request"]["origin"]) == 33
    assert found["request"]["origin"] != found["request"]["carrier"]
    assert "temp" not in found["vector"]


def test_a_pseudonym_is_the_keys_and_the_fields_own() -> None:
    first = kept("route,tailnum", KEY, record_of(parsed_request(route="x", tailnum="x"), Stored()))["request"]
    again = kept("route,tailnum", KEY, record_of(parsed_request(route="x", tailnum="y"), Stored()))["request"]
    other = kept("route", SecretStr("o" * 32), record_of(parsed_request(route="x"), Stored()))["request"]

    assert first["route"] == again["route"]
    assert len({first["route"], first["tailnum"], again["tailnum"], other["route"]}) == 4


def test_a_null_identifier_stays_null() -> None:
    assert kept("tailnum", KEY, record_of(parsed_request(tailnum=None), Stored()))["request"]["tailnum"] is None


def test_a_whole_number_that_identifies_stays_a_whole_number_every_reader_keeps() -> None:
    keys = tuple(replace(spec, dtype="int") if spec.name == "tailnum" else spec for spec in CONTRACT.keys)
    contract = replace(CONTRACT, keys=keys)

    found = kept("tailnum", KEY, {**record_of(parsed_request(tailnum=7), Stored())}, contract)["request"]["tailnum"]

    assert isinstance(found, int)
    assert 7 != found < 2**53


def test_what_is_computed_from_a_redacted_field_goes_with_it() -> None:
    found = kept("distance", NO_KEY, record_of(parsed_request(), Stored()))

    computed = {name for step in CONTRACT.on_demand if "distance" in step.inputs for name in step.features}
    assert "trip_distance" in computed
    assert {"distance", *computed} <= set(found["redacted"])
    assert computed & set(found["vector"]) == set()


def test_a_message_that_quotes_the_value_is_replaced_and_others_stay() -> None:
    stored = {view: dict(row) for view, row in STORED.items() if view != "plane_record"}
    stored["origin_weather"] |= {"temp": 314159.0, "humid": 271828.0}
    record = record_of(parsed_request(tailnum="N-SECRET"), Stored(stored, dict.fromkeys(stored, NOW)))

    told = {v["feature"]: v["message"] for v in kept("temp,tailnum", NO_KEY, record)["violations"]}

    assert told["temp"] == "temp: range (value redacted)"
    assert told["plane_record"] == "plane_record: missing (value redacted)"
    assert "271828" in told["humid"]


def test_the_record_itself_is_not_changed() -> None:
    record = record_of(parsed_request(), Stored(STORED, dict.fromkeys(STORED, NOW)))
    before = json.dumps(record, default=str)

    kept(",".join(NAMES), KEY, record)

    assert json.dumps(record, default=str) == before


@pytest.mark.parametrize(
    ("names", "key", "says"),
    [
        ("tailnum,nonsense", NO_KEY, "UNDERSTUDY_REDACT names nonsense, no request field and no feature; known: "),
        ("tailnum", SecretStr("short"), "UNDERSTUDY_REDACT_KEY has 5 bytes"),
        ("", KEY, "UNDERSTUDY_REDACT names nothing to redact"),
    ],
)
def test_settings_that_would_redact_otherwise_than_meant_are_refused(names: str, key: SecretStr, says: str) -> None:
    with pytest.raises(NotReady) as refused:
        redaction_of(CONTRACT, names, key)

    assert says in str(refused.value)
    assert "short" not in str(refused.value)


def test_models_shadow_and_caller_get_what_the_log_does_not(stage: Callable[..., Stage]) -> None:
    primary, shadow = FakeRunner(lambda _: 0.3), FakeRunner(lambda _: 0.4)
    at = stage(primary=primary, shadow=shadow)
    log = redacted(at.log, CONTRACT, "origin,temp,tailnum", NO_KEY)
    router = Router(
        CONTRACT, at.lookup, at.cast, (at.path,), log, at.clock, Budget(0.2, 0.05), service_version="test"
    )  # fmt: skip

    async def run() -> Answer:
        answer = await router.answer(parsed_request(tailnum="N-SECRET"))
        await at.path.close(1)
        return answer

    answer = asyncio.run(run())

    assert answer.role == "primary"
    assert (primary.rows[0]["origin"], primary.rows[0]["temp"]) == ("EWR", 60.0)
    assert shadow.rows == primary.rows[:1]
    assert "N-SECRET" not in json.dumps([at.log.records, at.shadow_log.records], default=str)
    assert at.log.records[0]["redacted"] == ("origin", "tailnum", "temp")


_LETTERS = "QXZΩ漢\U0001f600\\\"'/~ \t"


def _value(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """Values that occur nowhere else in a record, whatever their type: each field has a range of its own."""
    own = NAMES.index(spec.name)
    if spec.dtype == "timestamp":
        return st.integers(1, 10**6).map(lambda n: datetime(1987, 1, 1, tzinfo=NOW.tzinfo) + timedelta(microseconds=n))
    if spec.dtype == "int":
        return st.integers(7_000_000_000, 7_000_999_999).map(lambda n: n + own * 1_000_000)
    if spec.dtype == "float":
        return st.integers(1, 999_999).map(lambda n: 8e9 + own * 1e6 + n + 0.5)
    return st.text(_LETTERS, min_size=3, max_size=20).map(lambda text: f"{chr(0x4E00 + own)}{text}")


def _written(value: Any) -> set[str]:
    """How a value may look in a line or a message."""
    if isinstance(value, datetime):
        return {value.isoformat(), str(value), f"{value:%Y-%m-%dT%H:%M:%S}"}
    plain = {json.dumps(value, ensure_ascii=False).strip('"'), json.dumps(value).strip('"'), str(value), repr(value)}
    return plain | {json.dumps(text, ensure_ascii=False).strip('"') for text in plain}


@pytest.mark.parametrize("key", [NO_KEY, KEY])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_a_redacted_field_is_anywhere_in_the_line(tmp_path: Path, key: SecretStr, data: Any) -> None:
    specs = {spec.name: spec for spec in (*CONTRACT.request_fields, *CONTRACT.fields)}
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    request = {spec.name: data.draw(_value(spec)) for spec in CONTRACT.request_fields}
    stored = {
        view.name: {name: data.draw(_value(specs[name])) if name in specs else None for name in view.features}
        for view in CONTRACT.views
        if data.draw(st.booleans())
    }
    record = record_of(request, Stored(stored, dict.fromkeys(stored, NOW)))
    folder = tmp_path / str(len(list(tmp_path.iterdir())))

    log = redacted(SegmentLog(folder, 10**6), CONTRACT, ",".join(names), key)
    assert log.append(record)
    log.close()

    line = next(folder.glob("*.jsonl")).read_text()
    known = {**request, **{name: value for row in stored.values() for name, value in row.items()}}
    for value in (known[name] for name in names if known.get(name) is not None):
        assert [text for text in _written(value) if text in line] == []
    found = json.loads(line)
    assert set(names) <= set(found["redacted"])
    assert key.get_secret_value() or not set(found["redacted"]) & {*found["request"], *found["vector"]}


def test_the_requests_shape_knows_every_name_the_setting_may_hold() -> None:
    assert set(request_model(CONTRACT).model_fields) - {"request_id"} <= set(NAMES)
