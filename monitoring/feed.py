"""Pushes prepared feature rows to the online store as they become known."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config

from service.contract import Contract
from service.errors import NotReady
from service.feature_store import repo_config
from service.settings import Settings


class Feed:
    """The feature rows of a replay, pushed online as they become known."""

    def __init__(self, settings_: Settings, contract: Contract) -> None:
        self._store = FeatureStore(config=repo_config(settings_))
        self._tables: dict[str, pd.DataFrame] = {}
        for view in contract.views:
            path = settings_.features_dir / f"{view.name}.parquet"
            if not path.exists():
                msg = f"{path} does not exist; run `make train` first"
                raise NotReady(msg)
            self._tables[view.name] = pd.read_parquet(path).sort_values("event_timestamp", ignore_index=True)
        self._keys = {view.name: list(view.keys) for view in contract.views}
        self._next = dict.fromkeys(self._tables, 0)

    def begin(self, at: datetime) -> int:
        """Empty the online store and write the newest row of every key known at ``at``; returns rows written.

        What an earlier replay left there may be of a later moment.
        """
        self._clear()
        written = 0
        for name, table in self._tables.items():
            end = int(table["event_timestamp"].searchsorted(pd.Timestamp(at), side="right"))
            newest = table.iloc[:end].drop_duplicates(self._keys[name], keep="last")
            written += self._write(name, newest)
            self._next[name] = end
        return written

    def _clear(self) -> None:
        online = get_online_store_from_config(self._store.config.online_store)
        views = [self._store.get_feature_view(name) for name in self._tables]
        for dropped, kept in ((views, []), ([], views)):
            online.update(
                self._store.config, tables_to_delete=dropped, tables_to_keep=kept,
                entities_to_delete=[], entities_to_keep=[], partial=True,
            )  # fmt: skip

    def push(self, now: datetime) -> int:
        """Write every row that has become known since the last call; returns rows written."""
        written = 0
        for name, table in self._tables.items():
            start = self._next[name]
            end = int(table["event_timestamp"].searchsorted(pd.Timestamp(now), side="right"))
            if end > start:
                # Several rows of one key in one step: only the newest would survive anyway.
                written += self._write(name, table.iloc[start:end].drop_duplicates(self._keys[name], keep="last"))
                self._next[name] = end
        return written

    def _write(self, view: str, rows: pd.DataFrame) -> int:
        if len(rows):
            self._store.write_to_online_store(view, rows)
        return len(rows)
