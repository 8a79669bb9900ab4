"""The online store is read whole, once, and an odd value costs itself only."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo import features as definitions
from service.feature_store import repo_config
from service.features import OnlineLookup, _python
from tests.bundle import NOW, STORED, make_bundle, parsed_request


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> OnlineLookup:
    bundle = make_bundle(tmp_path_factory.mktemp("store"))
    return OnlineLookup(repo_config(bundle.settings), bundle.contract, vars(definitions))


def test_every_view_comes_with_its_values_and_its_own_event_time(lookup: OnlineLookup) -> None:
    (stored,) = lookup.read([parsed_request()])

    assert set(stored.values) == set(STORED)
    assert stored.event_times == dict.fromkeys(STORED, NOW - timedelta(minutes=10))
    assert stored.values["plane_record"]["plane_last_arrival"] == NOW - timedelta(hours=5)
    assert stored.values["origin_weather"]["wind_gust"] is None


def test_rows_of_one_read_keep_their_own_answers(lookup: OnlineLookup) -> None:
    rows = [parsed_request(), parsed_request(tailnum="unknown"), parsed_request(tailnum=None), parsed_request()]

    found = lookup.read(rows)

    assert ["plane_record" in s.values for s in found] == [True, False, False, True]
    assert all("origin_weather" in s.values for s in found)


def test_concurrent_requests_share_reads_and_get_what_a_lone_one_gets(lookup: OnlineLookup) -> None:
    async def run() -> list[bool]:
        rows = [parsed_request(tailnum="N14228" if i % 2 else None) for i in range(50)]
        found = await asyncio.gather(*(lookup.fetch(row) for row in rows))
        return ["plane_record" in s.values for s in found]

    assert asyncio.run(run()) == [bool(i % 2) for i in range(50)]


@pytest.mark.parametrize("stored", [-(2**63), 2**62])
def test_a_timestamp_that_is_none_reads_as_null(stored: int) -> None:
    assert _python(Value(unix_timestamp_val=stored)) is None


def test_values_are_decoded_by_their_own_type() -> None:
    assert _python(Value(double_val=0.1)) == 0.1
    assert _python(Value(int64_val=7)) == 7
    assert _python(Value()) is None
    assert _python(Value(unix_timestamp_val=int(NOW.timestamp()))) == datetime.fromisoformat(NOW.isoformat())


def test_a_store_that_answered_nonsense_is_asked_over_new_connections(tmp_path: Path) -> None:
    class Confused:
        renewed = 0

        def read_views(self, *_: Any) -> Any:
            return [[("not a moment", 5)]]

        def renew(self) -> None:
            self.renewed += 1

    bundle = make_bundle(tmp_path)
    lookup = OnlineLookup(repo_config(bundle.settings, reads_only=True), bundle.contract, vars(definitions))
    store = Confused()
    lookup._store = store

    with pytest.raises((AttributeError, ValueError)):
        lookup.read([parsed_request()])

    assert store.renewed == 1
