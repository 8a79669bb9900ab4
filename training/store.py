"""The Feast store as training uses it: definitions registered, tables joined, the online store filled."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView
from tqdm import tqdm

from feature_repo import features as definitions
from service.contract import Contract
from service.errors import DataError
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import Settings

STAMP = "event_timestamp"
BATCH = 5000


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
    stamp, created = source.timestamp_field, source.created_timestamp_column
    names = [*view.join_keys, *(f.name for f in view.features), stamp, *([created] if created else [])]
    columns = ", ".join(f'"{name}"' for name in names)
    keys = ", ".join(f'"{key}"' for key in view.join_keys)
    order = f'"{stamp}" DESC' + (f', "{created}" DESC NULLS LAST' if created else "")
    sql = (
        f"SELECT {columns} FROM read_parquet('{path}') WHERE \"{stamp}\" <= ? "
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
        last = rows[STAMP].max() if len(rows) else None
        filled.append(Filled(view.name, len(rows), len(todo), last and last.to_pydatetime()))
    return filled


def _records(rows: pd.DataFrame, names: Iterable[str]) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in rows[list(names)].to_dict("records")]


def _differs(row: Mapping[str, Any], at: datetime | None, values: Mapping[str, Any] | None) -> bool:
    if at is None or values is None or at < row[STAMP]:
        return True
    return at == row[STAMP] and any(_null(row[n]) != _null(v) for n, v in values.items())


def _null(value: Any) -> Any:
    return None if pd.isna(value) else value
