"""The embedded online store: what every store must do, and what a file can suffer."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from prometheus_client import REGISTRY

from service.clock import ManualClock
from service.errors import StoreError
from service.feature_store import repo_config
from service.freshness import DataAge
from service.settings import ROOT, Settings
from tests.bundle import NOW, STORED, settings_in, store_rows
from tests.online import OnlineStoreTests, found, lookup_in, traffic, vector


class TestSqlite(OnlineStoreTests):
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return settings_in(tmp_path)


@pytest.fixture
def filled(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path)
    store_rows(settings, STORED)
    return settings


def test_event_times_do_not_depend_on_the_machines_zone(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # 02:30 does not exist in New York on that day.
    at = datetime(2013, 3, 10, 2, 30, tzinfo=UTC)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        fresh = settings_in(filled.state_dir.parent / "other")
        store_rows(fresh, STORED, at)
        assert set(found(lookup_in(fresh)).event_times.values()) == {at}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_reader_does_not_wait_for_a_writer(filled: Settings) -> None:
    lookup = lookup_in(filled)
    writer = sqlite3.connect(filled.state_dir / "online.db", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        assert vector(lookup).violations == ()
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_locked_store_raises_within_its_timeout_and_works_again_when_freed(filled: Settings) -> None:
    path = filled.state_dir / "online.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    apart = settings_in(filled.state_dir.parent / "apart")
    apart.state_dir.mkdir(parents=True)
    shutil.copy(path, apart.state_dir / "online.db")
    owner = sqlite3.connect(apart.state_dir / "online.db", isolation_level=None)
    owner.execute("PRAGMA journal_mode=DELETE")
    owner.execute("BEGIN EXCLUSIVE")
    lookup = lookup_in(apart)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        found(lookup)
    owner.execute("ROLLBACK")
    owner.close()

    assert vector(lookup).violations == ()


def test_a_store_that_is_missing_raises_and_is_not_made_by_reading(filled: Settings) -> None:
    path = filled.state_dir / "online.db"
    path.rename(path.with_suffix(".away"))
    lookup = lookup_in(filled)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        found(lookup)
    assert not path.exists()

    path.with_suffix(".away").rename(path)

    assert vector(lookup).violations == ()


def test_a_store_that_is_replaced_is_read_anew(filled: Settings) -> None:
    lookup = lookup_in(filled)
    assert found(lookup).values["origin_traffic"]["origin_dep_delay_3h"] == 4.0
    path = filled.state_dir / "online.db"
    other = settings_in(filled.state_dir.parent / "other")
    store_rows(other, STORED)
    FeatureStore(config=repo_config(other)).write_to_online_store("origin_traffic", traffic(9.0, NOW))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(other.state_dir / "online.db", path.with_suffix(".new"))
    wal = other.state_dir / "online.db-wal"
    if wal.exists():
        shutil.copy(wal, f"{path}-wal")
    path.with_suffix(".new").rename(path)

    assert found(lookup).values["origin_traffic"]["origin_dep_delay_3h"] == 9.0


def test_another_layout_is_refused_by_name_for_reading_and_writing(filled: Settings) -> None:
    with sqlite3.connect(filled.state_dir / "online.db") as connection:
        connection.execute("PRAGMA user_version=1")
    with pytest.raises(StoreError, match=r"has layout 1, this version reads 2; remove the file and run"):
        found(lookup_in(filled))
    with pytest.raises(StoreError, match="has layout 1"):
        store_rows(filled, STORED)


def test_a_damaged_file_is_an_error_and_not_an_empty_store(filled: Settings) -> None:
    path = filled.state_dir / "online.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(sqlite3.DatabaseError):
        found(lookup_in(filled))


def test_a_service_could_not_write_if_it_tried(filled: Settings) -> None:
    lookup = lookup_in(filled)

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        lookup._store._open(lookup._config).execute("DELETE FROM understudy_origin_traffic")


def test_one_failed_look_at_the_ages_does_not_end_the_watch(filled: Settings) -> None:
    clock = ManualClock(NOW)
    age = DataAge(lookup_in(filled), list(STORED), clock, every_s=0.01)
    path = filled.state_dir / "online.db"

    def shown(view: str) -> float | None:
        return REGISTRY.get_sample_value("understudy_feature_data_age_seconds", {"view": view})

    async def run() -> None:
        age.start()
        await asyncio.sleep(0.1)
        assert shown("origin_weather") == 600
        path.rename(path.with_suffix(".away"))
        clock.set(datetime(2013, 10, 1, 13, tzinfo=UTC))
        await asyncio.sleep(0.1)
        assert shown("origin_weather") == 4200  # grows on while nothing can be read
        path.with_suffix(".away").rename(path)
        FeatureStore(config=repo_config(filled)).write_to_online_store("origin_traffic", traffic(1.0, NOW))
        await asyncio.sleep(0.2)
        assert shown("origin_traffic") == 3600
        await age.close()

    asyncio.run(run())


def test_a_store_that_hangs_does_not_stop_the_ages(filled: Settings) -> None:
    class Hung:
        answers = 1

        async def newest(self) -> dict[str, datetime | None]:
            if self.answers:
                self.answers -= 1
                return {"hung_view": NOW}
            await asyncio.sleep(3600)
            return {}

    clock = ManualClock(NOW)

    async def run() -> None:
        age = DataAge(Hung(), ["hung_view"], clock, every_s=0.01, patience_s=0.02)
        age.start()
        await asyncio.sleep(0.1)
        clock.set(datetime(2013, 10, 1, 17, tzinfo=UTC))
        await asyncio.sleep(0.2)
        assert REGISTRY.get_sample_value("understudy_feature_data_age_seconds", {"view": "hung_view"}) == 18000
        await asyncio.wait_for(age.close(), 5)

    asyncio.run(run())


OPEN = """
import sys
from pathlib import Path
from tests.bundle import STORED, settings_in, store_rows
from feast import FeatureStore
from service.feature_store import repo_config
from feature_repo import features as definitions
settings = settings_in(Path(sys.argv[1]))
store = FeatureStore(config=repo_config(settings))
views = [v for v in vars(definitions).values() if type(v).__name__ == "FeatureView"]
print("ready", flush=True)
sys.stdin.readline()
from feast.infra.online_stores.helpers import get_online_store_from_config
get_online_store_from_config(store.config.online_store).update(store.config, [], views, [], [], partial=True)
"""


def test_processes_that_make_the_store_at_once_all_succeed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", OPEN, str(tmp_path)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outcomes = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        outcomes.append((process.returncode, errors[-300:]))

    assert outcomes == [(0, "")] * 4


def test_threads_of_one_process_do_not_undo_each_others_rows(filled: Settings) -> None:
    store = FeatureStore(config=repo_config(filled))
    online, view = get_online_store_from_config(store.config.online_store), store.get_feature_view("plane_record")
    kept: list[str] = []

    def row(name: str) -> Any:
        values = {"plane_last_arr_delay": Value(double_val=1.0), "plane_last_arrival": Value(unix_timestamp_val=1)}
        return EntityKey(join_keys=["tailnum"], entity_values=[Value(string_val=name)]), values, NOW, None

    def write(start: int) -> None:
        for i in range(150):
            name = f"N{start}-{i}"
            online.online_write_batch(store.config, view, [row(name)], None)
            kept.append(name)

    def fail() -> None:
        for _ in range(150):
            with pytest.raises(AttributeError):
                online.online_write_batch(store.config, view, [row("bad"), (None, {}, NOW, None)], None)
            with pytest.raises(sqlite3.Error), online._lock, online._open(store.config) as connection:
                connection.execute("INSERT INTO understudy_plane_record VALUES ('x', 1, NULL, NULL)")

    threads = [threading.Thread(target=work) for work in (lambda: write(0), fail, lambda: write(1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = lookup_in(filled).read([{"tailnum": name} for name in kept])
    assert len(kept) == 300
    assert all("plane_record" in stored.values for stored in found)
