"""What was read once is read again only when the store changed, and is never older than the store."""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore

from service.feature_store import repo_config
from service.features import OnlineLookup, Stored
from service.kept import Kept
from tests.bundle import NOW, STORED, parsed_request, settings_in, store_rows
from tests.online import found, lookup_in, traffic

PLACES = [("a", (1,)), ("b", (2,))]
READ = Stored({"a": {"x": 1.0}}, {"a": NOW, "b": None})


class Counting:
    """A store as it is, counting its reads."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.reads = 0

    def online_read(self, *arguments: Any) -> Any:
        self.reads += 1
        return self.store.online_read(*arguments)

    def revision(self, config: Any) -> Any:
        return self.store.revision(config)


def counted(lookup: OnlineLookup) -> Counting:
    store = Counting(lookup._store)
    lookup._store = store
    return store


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    settings = settings_in(tmp_path)
    store_rows(settings, STORED)
    return settings


def test_a_store_that_did_not_change_is_read_once(settings: Any) -> None:
    lookup = lookup_in(settings)
    store = counted(lookup)

    first, second, other = found(lookup), found(lookup), asyncio.run(lookup.fetch(parsed_request(tailnum="other")))

    assert first == second
    assert "plane_record" not in other.values
    # Every view once for the first, and all of them again for the one that names another key.
    assert store.reads == 2 * len(STORED)


def test_a_pushed_value_is_there_for_the_next_request(settings: Any) -> None:
    lookup, store = lookup_in(settings), FeatureStore(config=repo_config(settings))
    found(lookup), found(lookup)

    store.push("origin_traffic_push", traffic(7.0, NOW))

    assert found(lookup).values["origin_traffic"]["origin_dep_delay_3h"] == 7.0
    assert found(lookup).event_times["origin_traffic"] == NOW


def test_a_removed_file_is_an_error_whatever_was_read_from_it(settings: Any) -> None:
    lookup = lookup_in(settings)
    found(lookup), found(lookup)

    for path in settings.state_dir.glob("online.db*"):
        path.unlink()

    with pytest.raises(Exception, match="unable to open"):
        found(lookup)


def test_nothing_older_than_what_was_pushed_before_the_request_is_ever_found(settings: Any) -> None:
    lookup, done, pushed = lookup_in(settings), threading.Event(), [0.0]
    store = FeatureStore(config=repo_config(settings))
    store.push("origin_traffic_push", traffic(0.0, NOW))

    def push() -> None:
        for number in range(1, 60):
            store.push("origin_traffic_push", traffic(float(number), NOW + timedelta(seconds=number)))
            pushed[0] = float(number)
        done.set()

    async def ask() -> list[tuple[float, float]]:
        seen = []
        while not done.is_set():
            before = pushed[0]
            rows = [parsed_request(tailnum=random.choice(["N14228", "x", None])) for _ in range(4)]
            for stored in await asyncio.gather(*map(lookup.fetch, rows)):
                seen.append((before, stored.values["origin_traffic"]["origin_dep_delay_3h"]))
        return seen

    thread = threading.Thread(target=push)
    thread.start()
    seen = asyncio.run(ask())
    thread.join()

    assert len(seen) > 50
    assert [pair for pair in seen if pair[1] < pair[0]] == []


def test_what_is_kept_comes_back_as_it_was_read() -> None:
    kept = Kept()

    assert kept.get(1, PLACES) is None
    kept.put(1, PLACES, READ)

    assert kept.get(1, PLACES) == READ
    assert kept.get(1, PLACES[:1]) == Stored({"a": {"x": 1.0}}, {"a": NOW})


def test_what_was_read_before_a_change_is_not_kept() -> None:
    kept = Kept()
    kept.get(1, PLACES)
    kept.get(2, PLACES)

    kept.put(1, PLACES, READ)

    assert kept.get(2, PLACES) is None


def test_what_is_kept_is_bounded() -> None:
    kept = Kept(most=10)
    kept.get(1, PLACES)

    for number in range(100):
        kept.put(1, [("a", (number,))], READ)

    assert sum(kept.get(1, [("a", (number,))]) is not None for number in range(100)) <= 11
