"""The Feast store as training uses it: definitions registered, tables joined, the online store filled."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView

from feature_repo import features as definitions
from service.definitions import contracts
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import Settings


def open_store(settings: Settings) -> FeatureStore:
    """Open the store below ``settings.state_dir``; the registry is made on first :func:`apply`."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=repo_config(settings, offline=True))


def apply(store: FeatureStore, settings: Settings) -> None:
    """Register every definition, its tables placed below the state folder."""
    kinds = Entity, FeatureView, OnDemandFeatureView, FeatureService
    objects = [o for o in vars(definitions).values() if isinstance(o, kinds)]
    store.apply([_placed(o, settings) for o in objects])
    # A reader must not wait for the writer that materializes or pushes (feast 0.67 leaves SQLite's default).
    if store.config.online_store.type == "sqlite":
        with closing(sqlite3.connect(settings.state_dir / "online.db")) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def _placed(definition: Any, settings: Settings) -> Any:
    if not isinstance(definition, FeatureView) or isinstance(definition, OnDemandFeatureView):
        return definition
    placed = copy.copy(definition)
    batch = copy.deepcopy(definition.batch_source)
    batch.file_options.uri = str(settings.features_dir.resolve() / f"{definition.name}.parquet")
    # A view keeps its source in several places and copies from any of them (feast 0.67).
    if placed.stream_source is not None:
        placed.stream_source = copy.deepcopy(placed.stream_source)
        placed.stream_source.batch_source = batch
    placed.data_source = placed.stream_source or batch
    placed.batch_source = batch
    return placed


def newest(table: pd.DataFrame, keys: Iterable[str], at: datetime) -> pd.DataFrame:
    """The newest row of each key known at a moment."""
    known = table[table["event_timestamp"] <= pd.Timestamp(at)]
    return known.sort_values("event_timestamp", kind="stable").drop_duplicates(list(keys), keep="last")


def _keys(rows: pd.DataFrame, names: Iterable[str]) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in rows[list(names)].to_dict("records")]


def materialize(store: FeatureStore, settings: Settings, at: datetime) -> int:
    """Bring the online store to what was known at ``at``; returns rows written. Doing it twice changes nothing.

    A key whose stored value is as new or newer keeps it: a training that stands in the past must not rewind the
    features of a running service (feast 0.67's SQLite store overwrites whatever is there).
    """
    contract = contracts(definitions)["primary"]
    lookup = OnlineLookup(store.config, contract, vars(definitions))
    written = 0
    for view in contract.views:
        table = pd.read_parquet(settings.features_dir / f"{view.name}.parquet")
        rows = newest(table, view.keys, at)
        stored = lookup.read_times(view, _keys(rows, view.keys))
        behind = [s is None or s < t for s, t in zip(stored, rows["event_timestamp"], strict=True)]
        if any(behind):
            store.write_to_online_store(view.name, rows[behind])
        written += sum(behind)
    return written
