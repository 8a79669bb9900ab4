"""The embedded online store: one SQLite file, one row per view and key, in which the newest event time wins.

Feast's own SQLite store (0.67) cannot be trusted with freshness: it overwrites whatever is there, so that a late
backfill replaces a newer push; it keeps whole seconds, read and written as *local* time, so that a value may come back
an hour off where clocks change; and its rollback journal makes readers wait for writers. This one keeps microseconds
of UTC, refuses older rows inside the statement that writes, and uses a write-ahead log.

Chosen in ``feature_store.yaml`` by class name; Feast's ``push``, ``materialize`` and ``get_online_features`` go
through it as through any other.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from service.errors import StoreError

# Number of the layout, kept in the file; raise it with any change of the tables.
LAYOUT = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_KEYS = 500

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Found = tuple[datetime | None, dict[str, Value] | None]


class NewestSqliteOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast carries no types
    """Configuration of the embedded store.

    Attributes:
        path: the SQLite file; made when missing, unless ``read_only``.
        read_only: open it for reading only; a service never writes.
        timeout_s: how long a call waits for another process's lock.
    """

    type: Literal["service.online_store.NewestSqliteOnlineStore"] = "service.online_store.NewestSqliteOnlineStore"
    path: str = "data/online.db"
    read_only: bool = False
    timeout_s: float = 10.0


class NewestSqliteOnlineStore(OnlineStore):  # type: ignore[misc]  # same
    """Feast's online store interface over one SQLite file."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        # One connection serves all threads of a process; a transaction must not mix with another thread's.
        self._lock = threading.RLock()
        self._file: tuple[int, int] | None = None
        self._lookout: _Lookout | None = None

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows in one transaction; a row older than the one stored is left out.

        Of equal event times the row created last wins, and of those the one written last.
        """
        rows = [
            (_key(config, key), micros(at), None if made is None else micros(made), _packed(values))
            for key, values, at, made in data
        ]
        sql = (
            f"INSERT INTO {_table(config, table)} AS old VALUES (?, ?, ?, ?) ON CONFLICT(entity_key) DO UPDATE SET "
            "event_us = excluded.event_us, created_us = excluded.created_us, features = excluded.features "
            "WHERE excluded.event_us > old.event_us OR (excluded.event_us = old.event_us "
            "AND coalesce(excluded.created_us, 0) >= coalesce(old.created_us, 0))"
        )
        with self._lock, self._open(config) as connection:
            connection.executemany(sql, rows)
        if progress:
            progress(len(rows))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """Return event time and values per key, in order; ``(None, None)`` for a key that is not there."""
        keys = [_key(config, key) for key in entity_keys]
        found: dict[bytes, Found] = {}
        for start in range(0, len(keys), _MOST_KEYS):
            part = keys[start : start + _MOST_KEYS]
            sql = (
                f"SELECT entity_key, event_us, features FROM {_table(config, table)} "
                f"WHERE entity_key IN ({','.join('?' * len(part))})"
            )
            with self._lock:
                rows = self._open(config).execute(sql, part).fetchall()
            for key, at, features in rows:
                found[key] = (moment(at), _unpacked(features, requested_features))
        return [found.get(key, (None, None)) for key in keys]

    def newest(self, config: RepoConfig, tables: Iterable[FeatureView]) -> Mapping[str, datetime | None]:
        """Event time of the newest value of every view; None where it holds nothing."""
        answer = {}
        for table in tables:
            with self._lock:
                sql = f"SELECT max(event_us) FROM {_table(config, table)}"
                ((at,),) = self._open(config).execute(sql).fetchall()
            answer[table.name] = None if at is None else moment(at)
        return answer

    def revision(self, config: RepoConfig) -> Hashable:
        """A value that differs whenever anything in the file changed in between; None when it cannot be told.

        Takes microseconds and never waits, so that an event loop may ask; always ask from one and the same thread.
        """
        identity = _identity(config.online_store.path)
        if identity is None:
            return None
        if self._lookout is None or self._lookout.identity != identity:
            self._lookout = _Lookout(Path(config.online_store.path), identity)
        version = self._lookout.version()
        if version is None:
            self._lookout = None
            return None
        return self._lookout, version

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,
    ) -> None:
        """Make and drop tables as Feast's ``apply`` asks."""
        with self._lock, self._open(config) as connection:
            for table in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, table)}")
            for table in tables_to_keep:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_table(config, table)} (entity_key BLOB PRIMARY KEY, "
                    "event_us INTEGER NOT NULL, created_us INTEGER, features BLOB NOT NULL) WITHOUT ROWID"
                )
                index = _table(config, table, "_event_us")
                connection.execute(f"CREATE INDEX IF NOT EXISTS {index} ON {_table(config, table)} (event_us)")

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Any]) -> None:
        """Remove the file."""
        self._close()
        for suffix in ("", "-wal", "-shm"):
            Path(config.online_store.path + suffix).unlink(missing_ok=True)

    def _open(self, config: RepoConfig) -> sqlite3.Connection:
        """The connection, opened anew when the file was replaced: a removed file would be read for ever.

        Raises:
            StoreError: when the file has another layout.
            sqlite3.Error, OSError: when it cannot be read.
        """
        store = config.online_store
        path = Path(store.path)
        if self._connection is not None and _identity(path) != self._file:
            self._close()
        if self._connection is None:
            if not store.read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{path.absolute().as_uri()}?mode={'ro' if store.read_only else 'rwc'}"
            connection = sqlite3.connect(uri, uri=True, timeout=store.timeout_s, check_same_thread=False)
            try:
                if not store.read_only:
                    _lay_out(connection, store.timeout_s)
                _check_layout(connection, path)
            except sqlite3.OperationalError as error:
                connection.close()
                if store.read_only and "readonly" in str(error):
                    # A reader of a write-ahead log keeps a file of its own beside it.
                    msg = f"online store {path} is in a folder this process may not write; SQLite needs that to read it"
                    raise StoreError(msg) from error
                raise
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, _identity(path)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


class _Lookout:
    """A connection of its own that sees whether others changed the file: SQLite counts that per connection."""

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        self.identity = identity
        self._connection: sqlite3.Connection | None = None
        with suppress(sqlite3.Error):
            uri = f"{path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)

    def version(self) -> int | None:
        try:
            if self._connection is None:
                return None
            ((version,),) = self._connection.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:
            return None
        return int(version)


def _lay_out(connection: sqlite3.Connection, patience_s: float) -> None:
    """Give an empty file its layout; of several processes that try at once one does and the others wait."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version:
        return
    end = time.monotonic() + patience_s
    while True:
        try:
            # Changing the journal does not wait for locks (sqlite 3.40).
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    connection.execute("BEGIN IMMEDIATE")
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if version == 0 and tables == 0:
        connection.execute(f"PRAGMA user_version={LAYOUT}")
    connection.execute("COMMIT")


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    ((version, tables),) = connection.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    ).fetchall()
    if version != LAYOUT and (version or tables):
        msg = (
            f"online store {path} has layout {version}, this version reads {LAYOUT}; remove the file and run "
            "`make materialize`"
        )
        raise StoreError(msg)


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  # on every request, and a Path takes longer than the system
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _table(config: RepoConfig, table: FeatureView, suffix: str = "") -> str:
    name: str = compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
    return '"' + (name + suffix).replace('"', '""') + '"'


def _key(config: RepoConfig, key: EntityKey) -> bytes:
    return bytes(serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version))


def _packed(values: Mapping[str, Value]) -> bytes:
    return bytes(Map(val=values).SerializeToString(deterministic=True))


def _unpacked(features: bytes, wanted: Sequence[str] | None) -> dict[str, Value]:
    values = Map.FromString(features).val
    names = list(values) if wanted is None else wanted
    return {name: values[name] if name in values else Value() for name in names}


def micros(at: datetime) -> int:
    """Microseconds since 1970, UTC; a naive moment is UTC, as it is to Feast."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def moment(us: int) -> datetime:
    """The opposite of :func:`micros`."""
    return _EPOCH + timedelta(microseconds=us)
