"""The Feast store as training uses it: definitions registered, tables joined, the online store filled."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView
from feast.errors import FeastObjectNotFoundException
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError
from tqdm import tqdm

from feature_repo import features as definitions
from service.contract import Contract
from service.errors import DataError, NotReady, StoreError
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import Settings

STAMP = "event_timestamp"
BATCH = 5000


@contextmanager
def named_faults(settings: Settings) -> Iterator[None]:
    """Turn what Feast, SQLite and Redis raise about their files and servers into errors that name the fix.

    Raises:
        StoreError: when the online store cannot be reached, is locked or damaged.
        NotReady: when the registry is missing, empty or damaged.
    """
    where = f"Redis at {settings.redis.split(',')[0]}" if settings.feature_store == "redis" else "the online store"
    registry = settings.state_dir / "registry.db"
    try:
        yield
    except (sqlite3.Error, RedisError) as error:
        msg = f"{where} cannot be used ({error}); what it holds is unchanged: start or repair it and run this again"
        raise StoreError(msg) from error
    except (DecodeError, FeastObjectNotFoundException) as error:
        msg = f"the feature registry {registry} is empty or damaged ({error}); remove it and run `make train`"
        raise NotReady(msg) from error


def open_store(settings: Settings) -> FeatureStore:
    """Open the store below ``settings.state_dir``; the registry is made on first :func:`apply`."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=repo_config(settings, offline=True))


def apply(store: FeatureStore, settings: Settings) -> None:
    """Register every definition, its tables placed below the state folder."""
    kinds = Entity, FeatureView, OnDemandFeatureView, FeatureService
    objects = [o for o in vars(definitions).values() if isinstance(o, kinds)]
    store.apply([_placed(o, settings) for o in objects])


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


@dataclass(frozen=True)
class Filled:
    """What filling one view of the online store did.

    Attributes:
        keys: keys with a row known by then.
        written: of those, the ones that were missing, older or different.
        newest: event time of the newest row known by then, None without any.
    """

    view: str
    keys: int
    written: int
    newest: datetime | None


def newest_rows(view: FeatureView, at: datetime) -> pd.DataFrame:
    """The newest row of each key in a view's offline table known at a moment; of equal times the one created last.

    Raises:
        DataError: when the table is missing, damaged or lacks a column.
    """
    source = view.batch_source
    path = str(source.path).replace("'", "''")
    raw = {new: old for old, new in source.field_mapping.items()}
    stamp, created = source.timestamp_field, source.created_timestamp_column
    names = [*view.join_keys, *(f.name for f in view.features), stamp, *([created] if created else [])]
    # Nanoseconds cannot be compared with a moment, nor written online (duckdb 2.0, feast 0.67).
    kinds = dict.fromkeys([stamp, created], "::TIMESTAMPTZ")
    columns = ", ".join(f'"{raw.get(n, n)}"{kinds.get(n, "")} AS "{n}"' for n in names)
    keys = ", ".join(f'"{key}"' for key in view.join_keys)
    order = f'"{stamp}" DESC' + (f', "{created}" DESC NULLS LAST' if created else "")
    sql = (
        f"SELECT * FROM (SELECT {columns} FROM read_parquet('{path}')) WHERE \"{stamp}\" <= ? "
        f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {order}) = 1 ORDER BY {keys}"
    )
    try:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            rows: pd.DataFrame = connection.execute(sql, [at]).df()
            return rows
    except duckdb.Error as error:
        line = str(error).partition("\n")[0]
        msg = f"feature table of {view.name}: {source.path} cannot be read ({line}); run `make train` to prepare it"
        raise DataError(msg) from error


def materialize(store: FeatureStore, contract: Contract, at: datetime, *, progress: bool = False) -> list[Filled]:
    """Bring the online store to what was known at ``at``, view by view.

    The difference between tables and store is what is written, so that doing it twice changes nothing, rows that
    came late are picked up whenever they are dated, and a killed run is finished by the next. A key whose stored
    value is newer keeps it: a run that stands in the past must not rewind a running service.

    Args:
        store: registered definitions (:func:`apply`).
        contract: the widest feature service's.
        progress: whether to show a bar on stderr.
    """
    lookup = OnlineLookup(store.config, contract, vars(definitions))
    filled = []
    for view in contract.views:
        rows = newest_rows(store.get_feature_view(view.name), at)
        stored = lookup.read_view(view, _records(rows, view.keys))
        behind = [_differs(row, *found) for row, found in zip(_records(rows, rows.columns), stored, strict=True)]
        todo = rows[behind]
        with tqdm(total=len(todo), desc=view.name, unit="row", disable=not progress) as bar:
            for start in range(0, len(todo), BATCH):
                part = todo.iloc[start : start + BATCH]
                store.write_to_online_store(view.name, part)
                bar.update(len(part))
        last = rows[STAMP].max().to_pydatetime() if len(rows) else None
        if last is not None:
            # A run killed between rows and this note would leave it undone for ever.
            lookup.raise_newest(view, last)
        filled.append(Filled(view.name, len(rows), len(todo), last))
    return filled


def _records(rows: pd.DataFrame, names: Iterable[str]) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in rows[list(names)].to_dict("records")]


def _differs(row: Mapping[str, Any], at: datetime | None, values: Mapping[str, Any] | None) -> bool:
    if at is None or values is None or at < row[STAMP]:
        return True
    return at == row[STAMP] and any(_null(row[n]) != _null(v) for n, v in values.items())


def _null(value: Any) -> Any:
    return None if pd.isna(value) else value
