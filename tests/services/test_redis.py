"""A real Redis as online store: the same tests as on SQLite, and a server that is killed, hung, slow and flushed."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from feast import FeatureStore
from redis import Redis
from redis.exceptions import RedisError

from deploy.demo import free_port
from service.errors import StoreError
from service.feature_store import repo_config
from service.online_redis import NewestRedisOnlineStore
from service.settings import Settings
from tests.bundle import NOW, REQUEST, STORED, make_bundle, settings_in, store_rows
from tests.online import OnlineStoreTests, found, lookup_in, traffic, vector
from tests.serving import served
from tests.training.test_materialize import content, filled, tables
from training import materialize

pytestmark = pytest.mark.services


@dataclass
class Server:
    """A Redis of the tests' own, in memory only."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def client(self) -> Redis:
        return Redis(port=self.port)

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed; install the distribution's package `redis-server`"
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.client.ping()
            except RedisError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((self.folder / "log").read_text())

    def send(self, what: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(what)
        if what is signal.SIGKILL:
            self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(server: Server, tmp_path: Path) -> Settings:
    """Settings on an emptied server."""
    server.client.flushall()
    return settings_in(tmp_path, feature_store="redis", redis=server.address)


class TestRedis(OnlineStoreTests):
    """What every store must do (tests/online.py)."""


def test_materialize_fills_it_once_and_completely(settings: Settings, tmp_path: Path) -> None:
    made = tables(tmp_path / "tables", planes=500).model_copy(
        update={"feature_store": "redis", "redis": settings.redis}
    )

    assert filled(made) == 3 * 4 + 500
    first = content(made)
    assert filled(made) == 0
    assert content(made) == first
    assert sum(at is not None for at, _ in first["plane_record"]) == 500


def test_a_run_killed_before_it_noted_the_newest_time_is_finished_by_the_next(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tables(tmp_path / "tables", planes=20).model_copy(update={"feature_store": "redis", "redis": settings.redis})
    with monkeypatch.context() as patch:
        patch.setattr(NewestRedisOnlineStore, "raise_newest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            filled(made)

    filled(made)

    assert None not in asyncio.run(lookup_in(made).newest()).values()


def test_projects_on_one_server_do_not_touch_each_other(settings: Settings) -> None:
    store_rows(settings, STORED)
    config = repo_config(settings)
    other = config.model_copy(update={"project": "study"})
    views = [FeatureStore(config=config).get_feature_view(name) for name in STORED]
    online = NewestRedisOnlineStore()

    online.update(other, views, [], [], [], partial=True)
    online.delete_entity_values(other, ["origin"])

    assert vector(lookup_in(settings)).violations == ()


def test_a_cluster_is_refused_by_name(settings: Settings) -> None:
    config = repo_config(settings)
    config.online_store.redis_type = "redis_cluster"

    with pytest.raises(StoreError, match="a Redis cluster is not supported"):
        NewestRedisOnlineStore().newest(config, [])


def test_a_command_names_a_server_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tables(tmp_path, planes=3).model_copy(update={"feature_store": "redis", "redis": f"127.0.0.1:{free_port()}"})
    monkeypatch.setattr(materialize, "settings", lambda: made)
    monkeypatch.setattr(materialize, "prepare", lambda *_: None)

    assert materialize.main(["--as-of", "2013-03-25"]) == 2
    assert "Redis at 127.0.0.1" in capsys.readouterr().err


def test_a_killed_server_is_an_error_at_once_and_heals_when_it_is_back(settings: Settings, server: Server) -> None:
    store_rows(settings, STORED)
    lookup = lookup_in(settings)
    assert vector(lookup).violations == ()
    server.send(signal.SIGKILL)
    try:
        begun = time.monotonic()
        with pytest.raises(RedisError):
            found(lookup)
        assert time.monotonic() - begun < 5
    finally:
        server.start()

    assert {v.kind for v in vector(lookup).violations} == {"missing"}  # it kept nothing: memory only
    store_rows(settings, STORED)
    assert vector(lookup).violations == ()


def test_a_hung_server_holds_a_lookup_no_longer_than_its_timeout(settings: Settings, server: Server) -> None:
    store_rows(settings, STORED)
    lookup = lookup_in(settings)
    found(lookup)
    server.send(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(RedisError):
            found(lookup)
        assert time.monotonic() - begun < 20 * settings.lookup_timeout_ms / 1000
    finally:
        server.send(signal.SIGCONT)

    assert vector(lookup).violations == ()


def test_what_a_slow_server_answered_too_late_is_not_taken_for_the_next_answer(
    settings: Settings, server: Server
) -> None:
    store_rows(settings, STORED)
    lookup = lookup_in(settings)
    FeatureStore(config=repo_config(settings)).write_to_online_store("origin_traffic", traffic(9.0, NOW, origin="JFK"))
    found(lookup)
    server.client.client_pause(int(4 * settings.lookup_timeout_ms), all=True)
    with pytest.raises(RedisError):
        found(lookup)
    time.sleep(6 * settings.lookup_timeout_ms / 1000)

    (other,) = lookup.read([{**REQUEST, "origin": "JFK"}])

    assert other.values["origin_traffic"]["origin_dep_delay_3h"] == 9.0


def test_a_flushed_server_means_missing_features_and_an_unknown_age(settings: Settings, server: Server) -> None:
    store_rows(settings, STORED)
    lookup = lookup_in(settings)
    server.client.flushall()

    assert {(v.feature, v.kind) for v in vector(lookup).violations} == {(view, "missing") for view in STORED}
    assert asyncio.run(lookup.newest()) == dict.fromkeys(STORED)


def test_a_whole_service_degrades_and_heals_with_its_redis(server: Server, tmp_path: Path) -> None:
    server.client.flushall()
    redis = {"feature_store": "redis", "redis": server.address}
    bundle = make_bundle(tmp_path, **redis)
    environment = {"UNDERSTUDY_FEATURE_STORE": "redis", "UNDERSTUDY_REDIS": server.address}
    with served(bundle, tmp_path, **environment) as live:
        assert live.post("/predict", REQUEST)[1]["role"] == "primary"
        for hurt, heal in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
            server.send(hurt)
            status, answer = live.post("/predict", REQUEST)
            assert (status, answer["role"], answer["fallback_reason"]) == (200, "fallback", "store_unavailable")
            if heal is None:
                server.start()
                store_rows(bundle.settings, STORED)
            else:
                server.send(heal)
            live.wait_until(lambda: live.post("/predict", REQUEST)[1]["role"] == "primary")
        assert live.post("/predict", REQUEST)[1]["confidence"] == "normal"
