"""The Redis online store: Feast's, in which the newest event time wins under concurrent writers too.

Feast's (0.67) reads the stored times of a batch first and writes afterwards: of two writers the later one wins, newer
or not; and it skips a row of the same event time, so that a correction is never written. Here one script per key
compares and writes. The layout is Feast's, plus one hash that keeps the newest event time per view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from feast import FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key, _redis_key_prefix, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from google.protobuf.timestamp_pb2 import Timestamp
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.retry import Retry

from service.errors import StoreError
from service.online_store import Found, Row, micros, moment

# KEYS: the row's hash. ARGV: timestamp field, seconds and nanoseconds of the new row; created field, microseconds when
# the new row was created; seconds to live (0: for ever); then fields and values. The stored timestamp is a protobuf
# message: field 1 seconds, field 2 nanoseconds, both varints; a negative one has ten bytes, and what it lacks to -1 is
# summed because a Lua number has 53 bits.
_WRITE_IF_NEWER = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local new_s, new_n, new_c = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
if stored then
  local at, seconds, nanos = 1, 0, 0
  while at <= #stored do
    local tag = string.byte(stored, at)
    local value, rest, scale, byte = 0, 0, 1, 128
    at = at + 1
    while byte >= 128 do
      byte = string.byte(stored, at)
      value = value + (byte % 128) * scale
      if scale < 2^63 then rest = rest + (127 - byte % 128) * scale end
      scale = scale * 128
      at = at + 1
    end
    if scale > 2^63 then value = -1 - rest end
    if tag == 8 then seconds = value else nanos = value end
  end
  if seconds > new_s or (seconds == new_s and nanos > new_n) then return 0 end
  if seconds == new_s and nanos == new_n then
    local created = tonumber(redis.call('HGET', KEYS[1], ARGV[4]) or '0')
    if created > new_c then return 0 end
  end
end
redis.call('HSET', KEYS[1], ARGV[4], ARGV[5], unpack(ARGV, 7))
if tonumber(ARGV[6]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
return 1
"""
_RAISE = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored or tonumber(ARGV[2]) > tonumber(stored) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
if tonumber(ARGV[3]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
_BATCH = 5000


class NewestRedisOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]  # feast carries no types
    """Configuration: that of Feast's Redis store, and how long a call may take.

    Attributes:
        timeout_s: of connecting and of every command; a server that hangs must not hold a request's thread.
    """

    type: Literal["service.online_redis.NewestRedisOnlineStore"] = "service.online_redis.NewestRedisOnlineStore"
    timeout_s: float = 10.0


class NewestRedisOnlineStore(RedisOnlineStore):  # type: ignore[misc]  # same
    """Feast's Redis store with an atomic newest-wins write and one round trip for all views."""

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows; one older than the one stored is left out.

        Of equal event times the row created last wins, and of those the one written last.
        """
        client = self._get_client(config.online_store)
        script = client.register_script(_WRITE_IF_NEWER)
        view, ttl = _name(config, table), config.online_store.key_ttl_seconds or 0
        for start in range(0, len(data), _BATCH):
            with client.pipeline(transaction=False) as pipe:
                for key, values, at, made in data[start : start + _BATCH]:
                    stamp = _stamp(at)
                    created = 0 if made is None else micros(made)
                    head = [f"_ts:{view}", stamp.seconds, stamp.nanos, f"_created:{view}", created, ttl]
                    fields: list[Any] = [f"_ts:{view}", stamp.SerializeToString()]
                    for name, value in values.items():
                        fields += [_mmh3(f"{view}:{name}"), value.SerializeToString()]
                    script(keys=[_row_key(config, key)], args=[*head, *fields], client=pipe)
                pipe.execute()
        if data:
            self.raise_newest(config, table, max((at for _, _, at, _ in data), key=micros))
        if progress:
            progress(len(data))

    def raise_newest(self, config: RepoConfig, table: FeatureView, at: datetime) -> None:
        """Remember that a view holds a value of this event time; an earlier one than known changes nothing."""
        script = self._get_client(config.online_store).register_script(_RAISE)
        ttl = config.online_store.key_ttl_seconds or 0
        script(keys=[_newest_key(config)], args=[_name(config, table), micros(at), ttl])

    def renew(self) -> None:
        """Drop every connection: after an answer that made no sense, the next one may be another question's.

        redis-py (7) keeps a connection whose answer it could not parse, and reads on where that one left off.
        """
        if self._client is not None:
            self._client.connection_pool.disconnect()

    def read_views(
        self, config: RepoConfig, wanted: Sequence[tuple[FeatureView, list[EntityKey], list[str]]]
    ) -> list[list[Found]]:
        """Read several views in one round trip; per view what ``online_read`` returns."""
        commands: list[tuple[bytes, list[str | bytes]]] = []
        for table, keys, features in wanted:
            view = _name(config, table)
            fields = [f"_ts:{view}", *(_mmh3(f"{view}:{name}") for name in features)]
            commands += [(_row_key(config, key), fields) for key in keys]
        replies = iter(self._read_hash_fields(config, commands))
        return [[_found(next(replies), features) for _ in keys] for _, keys, features in wanted]

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """Return event time and values per key, in order; ``(None, None)`` for a key that is not there.

        Feast's (0.67) gives a missing row as one of 1970 full of nulls, and event times as rounded floats.
        """
        names = requested_features or [f.name for f in table.features]
        return self.read_views(config, [(table, entity_keys, names)])[0]

    def newest(self, config: RepoConfig, tables: Iterable[FeatureView]) -> Mapping[str, datetime | None]:
        """Event time of the newest value ever written of every view; None where there was none."""
        views = list(tables)
        names = [_name(config, view) for view in views]
        found = self._get_client(config.online_store).hmget(_newest_key(config), names)
        return {v.name: None if at is None else moment(int(at)) for v, at in zip(views, found, strict=True)}

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Remove a view's values, of this project only.

        Feast (0.67) takes every key that *ends* in the project's name for its own.
        """
        client, view = self._get_client(config.online_store), _name(config, table)
        fields = [f"_ts:{view}", f"_created:{view}", *(_mmh3(f"{view}:{f.name}") for f in table.features)]
        with client.pipeline(transaction=False) as pipe:
            for key in self._own_keys(config, table.join_keys):
                pipe.hdel(key, *fields)
            pipe.hdel(_newest_key(config), view)
            pipe.execute()

    def delete_entity_values(self, config: RepoConfig, join_keys: list[str]) -> None:
        """Remove everything stored for some join keys, of this project only."""
        client = self._get_client(config.online_store)
        with client.pipeline(transaction=False) as pipe:
            for key in self._own_keys(config, join_keys):
                pipe.delete(key)
            pipe.execute()

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Any]) -> None:
        """Remove everything of this project."""
        super().teardown(config, tables, entities)
        self._get_client(config.online_store).delete(_newest_key(config))

    def _own_keys(self, config: RepoConfig, join_keys: list[str]) -> list[bytes]:
        project, version = config.project.encode(), config.entity_key_serialization_version
        pattern = _redis_key_prefix(join_keys) + b"*" + project

        def own(key: bytes) -> bool:
            part = key[: -len(project)]
            try:
                entity = deserialize_entity_key(part, entity_key_serialization_version=version)
                return bool(serialize_entity_key(entity, entity_key_serialization_version=version) == part)
            except Exception:  # another project's key, whatever it holds
                return False

        return [key for key in self._get_client(config.online_store).scan_iter(pattern, count=1000) if own(key)]

    def _get_client(self, online_store_config: Any) -> Any:
        if self._client is None:
            if online_store_config.redis_type == RedisType.redis_cluster:
                msg = "a Redis cluster is not supported: scripts and the newest event times need one server or Sentinel"
                raise StoreError(msg)
            timeout = online_store_config.timeout_s
            limits = f"socket_timeout={timeout},socket_connect_timeout={timeout}"
            config = online_store_config.model_copy()
            config.connection_string = f"{config.connection_string},{limits}"
            client = super()._get_client(config)
            # redis-py waits up to 10 s between its own tries; a lost connection is worth one more try, at once.
            client.set_retry(Retry(NoBackoff(), 1, supported_errors=(LostConnection,)))
        return self._client


def _stamp(at: datetime) -> Timestamp:
    seconds, us = divmod(micros(at), 1_000_000)
    return Timestamp(seconds=seconds, nanos=us * 1000)


def _found(reply: Sequence[Any], features: Sequence[str]) -> Found:
    stamp, *values = reply
    if stamp is None:
        return None, None
    at = Timestamp.FromString(stamp)
    content = {n: Value.FromString(v) if v is not None else Value() for n, v in zip(features, values, strict=True)}
    return moment(at.seconds * 1_000_000 + at.nanos // 1000), content


def _name(config: RepoConfig, table: FeatureView) -> str:
    return str(compute_versioned_name(table, config.registry.enable_online_feature_view_versioning))


def _row_key(config: RepoConfig, key: EntityKey) -> bytes:
    version = config.entity_key_serialization_version
    return bytes(_redis_key(config.project, key, entity_key_serialization_version=version))


def _newest_key(config: RepoConfig) -> str:
    return f"understudy:newest:{config.project}"
