"""What every online store must do; the same tests run on SQLite here and on a real Redis in tests/services."""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo import features as definitions
from service.feature_store import repo_config
from service.features import OnlineLookup, Stored
from service.settings import Settings
from service.vector import Vector, build_vector
from tests.bundle import NOW, STORED, parsed_request, primary_contract, store_rows

CONTRACT = primary_contract()


def traffic(delay: float, at: datetime, **more: Any) -> pd.DataFrame:
    """One row of the origin's traffic."""
    row = {**STORED["origin_traffic"], "origin_dep_delay_3h": delay, "event_timestamp": at, **more}
    return pd.DataFrame([row])


def lookup_in(settings: Settings) -> OnlineLookup:
    """The service's lookup."""
    return OnlineLookup(repo_config(settings, reads_only=True), CONTRACT, vars(definitions))


def found(lookup: OnlineLookup) -> Stored:
    """What the toy request finds, as a request finds it."""
    return asyncio.run(lookup.fetch(parsed_request()))


def vector(lookup: OnlineLookup, now: datetime = NOW) -> Vector:
    """The toy request's vector."""
    return build_vector(CONTRACT, parsed_request(), found(lookup), now)


class OnlineStoreTests:
    """Give a ``settings`` fixture whose store holds the toy rows, known ten minutes before ``NOW``."""

    @pytest.fixture
    def store(self, settings: Settings) -> FeatureStore:
        store_rows(settings, STORED)
        return FeatureStore(config=repo_config(settings))

    def test_a_row_comes_back_whole_with_its_own_event_time(self, settings: Settings, store: FeatureStore) -> None:
        stored = found(lookup_in(settings))

        for view, row in STORED.items():
            keys = {spec.name for spec in CONTRACT.keys}
            assert stored.values[view] == {name: value for name, value in row.items() if name not in keys}
        assert stored.event_times == dict.fromkeys(STORED, NOW - timedelta(minutes=10))
        assert vector(lookup_in(settings)).violations == ()

    def test_event_times_keep_their_microseconds(self, settings: Settings, store: FeatureStore) -> None:
        at = datetime(2013, 10, 1, 11, 59, 59, 123457, tzinfo=UTC)
        store.write_to_online_store("origin_traffic", traffic(1.0, at))

        assert found(lookup_in(settings)).event_times["origin_traffic"] == at

    def test_a_late_backfill_does_not_replace_a_newer_value(self, settings: Settings, store: FeatureStore) -> None:
        store.push("origin_traffic_push", traffic(7.0, NOW))
        store.push("origin_traffic_push", traffic(1.0, NOW - timedelta(microseconds=1)))
        store.write_to_online_store("origin_traffic", traffic(2.0, NOW - timedelta(days=3)))

        stored = found(lookup_in(settings))

        assert stored.values["origin_traffic"]["origin_dep_delay_3h"] == 7.0
        assert stored.event_times["origin_traffic"] == NOW

    def test_the_newest_row_of_a_batch_wins_wherever_it_stands(self, settings: Settings, store: FeatureStore) -> None:
        rows = [traffic(float(m), NOW + timedelta(minutes=m)) for m in (2, 5, 1, 4)]
        store.write_to_online_store("origin_traffic", pd.concat(rows))

        assert found(lookup_in(settings)).values["origin_traffic"]["origin_dep_delay_3h"] == 5.0

    def test_a_correction_of_the_same_event_time_is_written(self, settings: Settings, store: FeatureStore) -> None:
        store.write_to_online_store("origin_traffic", traffic(7.0, NOW))
        store.write_to_online_store("origin_traffic", traffic(8.0, NOW))

        assert found(lookup_in(settings)).values["origin_traffic"]["origin_dep_delay_3h"] == 8.0

    def test_of_equal_event_times_the_row_created_last_wins(self, settings: Settings, store: FeatureStore) -> None:
        view = store.get_feature_view("origin_traffic")
        online = get_online_store_from_config(store.config.online_store)
        key = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="EWR")])
        for value, created in ((1.0, NOW + timedelta(hours=1)), (2.0, NOW), (3.0, None)):
            values = {"origin_dep_delay_3h": Value(double_val=value), "origin_departures_3h": Value(int64_val=1)}
            online.online_write_batch(store.config, view, [(key, values, NOW, created)], None)

        assert found(lookup_in(settings)).values["origin_traffic"]["origin_dep_delay_3h"] == 1.0

    def test_a_row_of_before_1970_can_be_replaced(self, settings: Settings, store: FeatureStore) -> None:
        store.write_to_online_store("origin_traffic", traffic(1.0, datetime(1969, 7, 20, tzinfo=UTC), origin="JFK"))
        store.write_to_online_store("origin_traffic", traffic(2.0, NOW, origin="JFK"))

        (stored,) = lookup_in(settings).read([parsed_request(origin="JFK")])
        assert stored.values["origin_traffic"]["origin_dep_delay_3h"] == 2.0

    def test_of_rows_of_before_1970_the_newer_wins(self, settings: Settings, store: FeatureStore) -> None:
        landing = datetime(1969, 7, 20, 20, 17, 40, 500_000, tzinfo=UTC)
        for value, seconds in ((1.0, 0.0), (2.0, 3.0), (3.0, -3.0), (4.0, 2.9)):
            row = traffic(value, landing + timedelta(seconds=seconds), origin="JFK")
            store.write_to_online_store("origin_traffic", row)

        (stored,) = lookup_in(settings).read([parsed_request(origin="JFK")])
        assert stored.values["origin_traffic"]["origin_dep_delay_3h"] == 2.0
        assert stored.event_times["origin_traffic"] == landing + timedelta(seconds=3)

    def test_nothing_is_left_after_a_teardown(self, settings: Settings, store: FeatureStore) -> None:
        store.teardown()
        store_rows(settings, {})
        lookup = lookup_in(settings)

        assert found(lookup).values == {}
        assert asyncio.run(lookup.newest()) == dict.fromkeys(STORED)

    def test_of_many_writers_the_newest_row_wins(self, settings: Settings, store: FeatureStore) -> None:
        moments = [NOW + timedelta(minutes=m) for m in range(60)]

        def write(seed: int) -> None:
            mine = FeatureStore(config=repo_config(settings))
            for at in random.Random(seed).sample(moments, len(moments)):
                mine.write_to_online_store("origin_traffic", traffic(float(at.minute), at))

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        stored = found(lookup_in(settings))
        assert stored.event_times["origin_traffic"] == moments[-1]
        assert stored.values["origin_traffic"]["origin_dep_delay_3h"] == moments[-1].minute

    def test_feasts_own_read_gives_the_same_values(self, settings: Settings, store: FeatureStore) -> None:
        refs = [f"{view.name}:{name}" for view in CONTRACT.views for name in view.features]
        keys = {name: parsed_request()[name] for name in ("origin", "carrier", "route", "tailnum")}

        answer = store.get_online_features(refs, [keys]).to_dict()

        for view, row in found(lookup_in(settings)).values.items():
            for name, value in row.items():
                (given,) = answer[name]
                plain = given.replace(tzinfo=UTC) if isinstance(given, datetime) else given
                assert plain == value, f"{view}:{name}"

    def test_an_unknown_key_is_missing_and_not_a_row_of_nulls(self, settings: Settings, store: FeatureStore) -> None:
        lookup = lookup_in(settings)
        stored = lookup.read([parsed_request(tailnum="unheard")])[0]

        assert stored.event_times["plane_record"] is None
        assert "plane_record" not in stored.values

    def test_the_newest_event_time_of_every_view_is_known(self, settings: Settings, store: FeatureStore) -> None:
        lookup = lookup_in(settings)
        store.write_to_online_store("origin_traffic", traffic(1.0, NOW, origin="JFK"))
        store.write_to_online_store("origin_traffic", traffic(1.0, NOW - timedelta(hours=9), origin="LGA"))

        newest = asyncio.run(lookup.newest())

        assert newest == {**dict.fromkeys(STORED, NOW - timedelta(minutes=10)), "origin_traffic": NOW}

    def test_a_view_that_was_emptied_is_missing_and_has_no_age(self, settings: Settings, store: FeatureStore) -> None:
        view = store.get_feature_view("origin_traffic")
        online = get_online_store_from_config(store.config.online_store)
        for dropped, kept in (([view], []), ([], [view])):
            online.update(store.config, dropped, kept, [], [], partial=True)
        lookup = lookup_in(settings)

        assert [(v.feature, v.kind) for v in vector(lookup).violations] == [("origin_traffic", "missing")]
        assert asyncio.run(lookup.newest())["origin_traffic"] is None
        assert not vector(lookup).usable

    def test_an_old_value_is_stale_by_its_own_time_however_lately_it_came(
        self, settings: Settings, store: FeatureStore
    ) -> None:
        store.write_to_online_store("origin_traffic", traffic(1.0, NOW + timedelta(hours=1)))
        late = vector(lookup_in(settings), NOW + timedelta(hours=2))

        assert {(v.feature, v.kind) for v in late.violations} == {
            ("origin_traffic", "stale"),
            ("carrier_record", "stale"),
        }
        assert late.ages["origin_traffic"] == 3600
        assert not late.usable

    def test_the_registry_is_not_needed_to_look_up(self, settings: Settings, store: FeatureStore) -> None:
        (settings.state_dir / "registry.db").unlink()

        assert vector(lookup_in(settings)).violations == ()
