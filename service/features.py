"""Looks a request's features up, once, and says what is wrong with them.

Stored values are read through Feast's ``OnlineStore.online_read`` with the view objects of the definitions
module. The registry stays out of it on purpose: it holds on-demand functions as dill, which a service must
not load (feast 0.67), and each value comes with its own event time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from feast import FeatureView, OnDemandFeatureView
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

from service.batcher import Batcher
from service.contract import Contract, ViewSpec
from service.kept import Content, Kept, Place, Stored

Row = Mapping[str, Any]
_AT_ONCE = 1000

__all__ = ["Lookup", "OnlineLookup", "Row", "Stored"]


class Lookup(Protocol):
    """Anything that finds stored features."""

    def at_hand(self, row: Row) -> Stored | None:
        """Return what is stored for the row's join keys when that is known without waiting; None when not."""
        ...

    async def fetch(self, row: Row) -> Stored:
        """Return what is stored for the row's join keys; raises when the store cannot be asked."""
        ...


class OnlineLookup:
    """Reads the online store on one thread, many waiting rows in one read.

    A thread keeps a slow, locked or hung store from stalling the event loop; one is enough, because a read of many
    rows takes little longer than a read of one. From a store that can tell whether anything changed in it, a key is
    read once per change: on a busy event loop the way to a thread and back costs more than the read.
    """

    def __init__(self, config: RepoConfig, contract: Contract, definitions: Mapping[str, Any]) -> None:
        self._config = config
        self._views = contract.views
        objects = [o for o in definitions.values() if isinstance(o, FeatureView)]
        self._tables = {o.name: o for o in objects if not isinstance(o, OnDemandFeatureView)}
        self._store = get_online_store_from_config(config.online_store)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="online-store")
        self._batcher: Batcher[Row, Stored] = Batcher(self._read_later, max_size=256)
        self._kept = Kept()

    def at_hand(self, row: Row) -> Stored | None:
        """Return what was read for the row's join keys, if nothing has changed in the store since."""
        revision = self._revision()
        return None if revision is None else self._kept.get(revision, self._places(row))

    async def fetch(self, row: Row) -> Stored:
        """Return what is stored for the row's join keys.

        Raises:
            Exception: whatever the store raises when it is gone, locked or of another layout.
        """
        revision = self._revision()
        if revision is None:
            return await self._batcher.submit(row)
        places = self._places(row)
        stored = self._kept.get(revision, places)
        if stored is None:
            stored = await self._batcher.submit(row)
            self._kept.put(revision, places, stored)
        return stored

    def _places(self, row: Row) -> list[Place]:
        return [(view.name, _key_values(view, row)) for view in self._views]

    def _revision(self) -> Hashable:
        """What the store is at now; None when it cannot tell."""
        if not hasattr(self._store, "revision"):
            return None
        revision: Hashable = self._store.revision(self._config)
        return revision

    async def _read_later(self, rows: Sequence[Row]) -> Sequence[Stored]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.read, rows)

    def read(self, rows: Sequence[Row]) -> list[Stored]:
        """Read many rows at once, in the calling thread."""
        values: list[dict[str, Mapping[str, Any]]] = [{} for _ in rows]
        times: list[dict[str, datetime | None]] = [{} for _ in rows]
        for view, found in zip(self._views, self._read_views(self._views, rows), strict=True):
            for i, row in enumerate(rows):
                at, content = found.get(_key_values(view, row), (None, None))
                times[i][view.name] = at
                if content is not None:
                    values[i][view.name] = content
        return [Stored(v, t) for v, t in zip(values, times, strict=True)]

    def read_view(self, view: ViewSpec, rows: Sequence[Row]) -> list[Content]:
        """Return event time and values stored for each row's key in one view, in the calling thread."""
        found: dict[tuple[Any, ...], Content] = {}
        for start in range(0, len(rows), _AT_ONCE):
            found.update(self._read_views([view], rows[start : start + _AT_ONCE])[0])
        return [found.get(_key_values(view, row), (None, None)) for row in rows]

    def raise_newest(self, view: ViewSpec, at: datetime) -> None:
        """Tell a store that keeps the newest event time apart from the values what it is."""
        if hasattr(self._store, "raise_newest"):
            self._store.raise_newest(self._config, self._tables[view.name], at)

    async def newest(self) -> Mapping[str, datetime | None]:
        """Return per view the event time of its newest value; None where it holds nothing.

        A store other than this project's cannot be asked: then no view has an entry.
        """
        if not hasattr(self._store, "newest"):
            return {}
        tables = [self._tables[view.name] for view in self._views]
        ask = partial(self._store.newest, self._config, tables)
        found: Mapping[str, datetime | None] = await asyncio.get_running_loop().run_in_executor(self._thread, ask)
        return found

    def _read_views(self, views: Sequence[ViewSpec], rows: Sequence[Row]) -> list[dict[tuple[Any, ...], Content]]:
        keys = [list(dict.fromkeys(_key_values(view, row) for row in rows)) for view in views]
        keys = [[key for key in some if None not in key] for some in keys]
        wanted = [
            (self._tables[view.name], [_entity_key(view.keys, key) for key in some], list(view.features))
            for view, some in zip(views, keys, strict=True)
        ]
        try:
            if hasattr(self._store, "read_views"):
                answers = self._store.read_views(self._config, wanted)
            else:
                answers = [self._store.online_read(self._config, t, some, f) if some else [] for t, some, f in wanted]
            return [
                {key: _content(*answer) for key, answer in zip(some, part, strict=True)}
                for some, part in zip(keys, answers, strict=True)
            ]
        except Exception:
            if hasattr(self._store, "renew"):
                self._store.renew()
            raise


def _content(at: datetime | None, content: Mapping[str, Value] | None) -> Content:
    return _utc(at), None if content is None else {name: _python(value) for name, value in content.items()}


def _key_values(view: ViewSpec, row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in view.keys)


def _entity_key(names: Sequence[str], values: Sequence[Any]) -> EntityKey:
    protos = [Value(int64_val=v) if isinstance(v, int) else Value(string_val=v) for v in values]
    return EntityKey(join_keys=list(names), entity_values=protos)


def _python(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    if kind == "unix_timestamp_val":
        # Feast stores a null timestamp as the smallest integer (feast 0.67).
        try:
            return datetime.fromtimestamp(value.unix_timestamp_val, UTC)
        except (OSError, OverflowError, ValueError):
            return None
    return getattr(value, kind)


def _utc(at: datetime | None) -> datetime | None:
    if at is None:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
