"""A Feast offline store whose point-in-time join is DuckDB's ``ASOF LEFT JOIN``.

Feast's own DuckDB store joins every earlier feature row and keeps the newest: 240 s and 21 GB for 336,776 rows and
four views. Its default store loses rows. ASOF finds the newest row directly (feast 0.67, duckdb 2.0).

Chosen in ``feature_store.yaml`` by class name and used through ``FeatureStore.get_historical_features``. The entity
rows may be a frame, a SQL query or the path of a parquet file; they are joined a chunk at a time, so that
``to_parquet`` needs memory for one chunk only. Sources other than local parquet are left to Feast's store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.type_map import feast_value_type_to_pa

from service.errors import DataError

ROW = "__row"
AT = "__at"
SEEN = "__seen"
_LONGEST_PATH = 200


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]  # feast carries no types
    """Configuration: that of Feast's DuckDB store, and how much is joined at once.

    Attributes:
        chunk_rows: entity rows in one join; memory grows with it, time hardly shrinks.
    """

    type: Literal["training.offline_store.AsofOfflineStore"] = "training.offline_store.AsofOfflineStore"
    chunk_rows: int = 500_000


@dataclass(frozen=True)
class Join:
    """One view's part of the join.

    Attributes:
        view: its name or alias.
        path: its parquet file or folder.
        keys: column of the entity frame by column of the feature table; empty for a view without entities.
        columns: name in the result by name in the feature table.
        stamp, created: the table's event and created timestamp columns.
        by_created: whether a row counts only once it was created.
    """

    view: str
    path: str
    keys: Mapping[str, str]
    columns: Mapping[str, str]
    stamp: str
    created: str | None
    ttl: timedelta | None
    by_created: bool


@dataclass(frozen=True)
class Entities:
    """The rows to join features to: a frame, or SQL when there may be too many for one.

    Attributes:
        stamp: column with the moment of each row.
        columns: all of them, in order.
    """

    source: pd.DataFrame | str
    stamp: str
    columns: tuple[str, ...]

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """The rows in order, so many at a time; at least one chunk, which may be empty."""
        if isinstance(self.source, pd.DataFrame):
            schema = _schema(self.source)
            for start in range(0, max(len(self.source), 1), rows):
                yield pa.Table.from_pandas(self.source.iloc[start : start + rows], schema, preserve_index=False)
            return
        with _connection() as connection:
            reader = connection.sql(self.source).to_arrow_reader(rows)
            empty = True
            for batch in reader:
                empty = False
                yield pa.Table.from_batches([batch])
            if empty:
                yield reader.schema.empty_table()


class AsofOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]  # same
    """Feast's DuckDB store with another point-in-time join."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Return the job that joins, for each entity row, the newest features known at its timestamp.

        One row out per row in, in the same order. A key that is null, unknown, or older than the view's TTL
        yields nulls. Of rows with the same key and event time the one created last counts.

        Args:
            config, feature_views, feature_refs, registry, project, full_feature_names: as Feast hands them over.
            entity_df: a frame, a SQL query (DuckDB's), or the path of a parquet file.
            filter_by_created_timestamp: see a row from the moment it was created, not only from its event time.

        Raises:
            DataError: when a feature table is missing, damaged or lacks a column, or the entity rows do.
        """
        if not all(_is_local_parquet(view) for view in feature_views):
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project, full_feature_names,
                filter_by_created_timestamp,
            )  # fmt: skip
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        # The references include what on-demand views read: Feast adds it (feast 0.67).
        joins = [_join(view, feature_refs, full_feature_names, filter_by_created_timestamp) for view in feature_views]
        chunk_rows = getattr(config.offline_store, "chunk_rows", 500_000)
        return AsofRetrievalJob(_entities(entity_df), joins, on_demand, full_feature_names, feature_refs, chunk_rows)


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]  # same
    """The join, run when its result is asked for."""

    def __init__(
        self,
        entities: Entities,
        joins: Sequence[Join],
        on_demand: Sequence[OnDemandFeatureView],
        full_feature_names: bool,
        feature_refs: Sequence[str],
        chunk_rows: int,
    ) -> None:
        self._entities = entities
        self._joins = joins
        self._full = full_feature_names
        self._refs = list(feature_refs)
        self._steps = [_Step(view, self._refs, full_feature_names) for view in on_demand]
        self._chunk_rows = chunk_rows
        names = [*entities.columns, *(name for join in joins for name in join.columns.values())]
        names += [name for step in self._steps for name in step.outputs.values()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"column {', '.join(twice)} is in the entity rows and in a feature view; rename or drop it there"
            raise DataError(msg)

    @property
    def full_feature_names(self) -> bool:
        """Whether result columns are named ``view__feature``."""
        return self._full

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """None for Feast to run: this job runs them itself, each on its own input columns only.

        Feast would turn the whole joined table into Python objects for every one (feast 0.67).
        """
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked for."""
        stamp = self._entities.stamp
        if isinstance(self._entities.source, pd.DataFrame):
            moments = pd.to_datetime(self._entities.source[stamp], utc=True)
            first, last = moments.min(), moments.max()
        else:
            with _connection() as connection:
                at = f"{_quoted(stamp)}::TIMESTAMPTZ"
                sql = f"SELECT min({at}), max({at}) FROM ({self._entities.source}\n)"
                ((first, last),) = connection.sql(sql).fetchall()
        return RetrievalMetadata(self._refs, [c for c in self._entities.columns if c != stamp], first, last)

    def batches(self) -> Iterator[pa.Table]:
        """The result a chunk at a time, in order."""
        for chunk in self._chunks():
            table = self._joined(chunk, _picked)
            lists: dict[str, list[Any]] = {}
            for step in self._steps:
                table = step.appended(table, lists)
            yield table

    def to_parquet(self, path: Path | str) -> int:
        """Write the result to a parquet file, a chunk at a time; returns rows written.

        The file appears when it is whole: a killed join leaves none.
        """
        target, rows = Path(path), 0
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            partial = Path(folder) / target.name
            writer: pq.ParquetWriter | None = None
            try:
                for table in self.batches():
                    writer = writer or pq.ParquetWriter(partial, table.schema)
                    writer.write_table(table)
                    rows += table.num_rows
            finally:
                if writer is not None:
                    writer.close()
            partial.replace(target)
        return rows

    def event_times(self) -> pa.Table:
        """Per entity row, in order, and per view the event time of the row that was joined; null where none was."""
        return _whole([self._joined(chunk, _dated).select(self._views) for chunk in self._chunks()])

    @property
    def _views(self) -> list[str]:
        return [join.view for join in self._joins]

    def _chunks(self) -> Iterator[pa.Table]:
        return self._entities.chunks(self._chunk_rows)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return _whole(list(self.batches()))

    def _joined(self, chunk: pa.Table, pick: Callable[[str, Join, str], list[str]]) -> pa.Table:
        with _connection() as connection:
            connection.register("given", chunk)
            stamp = _quoted(self._entities.stamp)
            try:
                # Text and naive timestamps mean UTC, as they do to Feast.
                connection.execute(
                    f"CREATE TEMP TABLE entities AS SELECT * REPLACE ({stamp}::TIMESTAMPTZ AS {stamp}), "
                    f"row_number() OVER () AS {ROW} FROM given"
                )
            except duckdb.Error as error:
                msg = f"column {self._entities.stamp} of the entity rows holds no moments ({_line(error)})"
                raise DataError(msg) from error
            ((first, last),) = connection.sql(f"SELECT min({stamp}), max({stamp}) FROM entities").fetchall()
            picked, joined = ["e.*"], ["entities e"]
            for number, join in enumerate(self._joins):
                f = f"f{number}"
                picked += pick(f, join, stamp)
                equal = [f"e.{_quoted(mine)} = {f}.{_quoted(theirs)}" for theirs, mine in join.keys.items()]
                conditions = " AND ".join([*equal, f"e.{stamp} >= {f}.{SEEN}"])
                joined.append(f"ASOF LEFT JOIN ({_table(join, first, last)}) {f} ON {conditions}")
            sql = f"SELECT {', '.join(picked)} FROM {' '.join(joined)} ORDER BY e.{ROW}"
            self._refuse_other_key_types(chunk.schema)
            try:
                return connection.sql(sql).to_arrow_table().drop_columns([ROW])
            except duckdb.Error as error:
                raise DataError(self._fault(error)) from error

    def _refuse_other_key_types(self, given: pa.Schema) -> None:
        """DuckDB would compare text with numbers by turning one into the other: '007' would be 7."""
        for join in self._joins:
            try:
                table = pq.ParquetDataset(join.path).schema
            except (OSError, pa.ArrowException):
                continue  # the join itself will say what is wrong with the table
            for theirs, mine in join.keys.items():
                if mine not in given.names or theirs not in table.names:
                    continue
                kinds = given.field(mine).type, table.field(theirs).type
                if _is_text(kinds[0]) != _is_text(kinds[1]) and not pa.types.is_null(kinds[0]):
                    msg = f"join key {mine} is {kinds[0]} in the entity rows and {kinds[1]} in {join.view}; convert one"
                    raise DataError(msg)

    def _fault(self, error: duckdb.Error) -> str:
        for join in self._joins:
            try:
                with _connection() as connection:
                    found = set(connection.sql(f"FROM read_parquet('{_escaped(join.path)}')").columns)
            except duckdb.Error as cause:
                return f"feature table of {join.view}: {join.path} cannot be read ({_line(cause)}); prepare it again"
            wanted = {*join.keys, *join.columns, join.stamp, *([join.created] if join.created else [])}
            if missing := sorted(wanted - found):
                return f"feature table of {join.view}: {join.path} has no column {', '.join(missing)}; prepare it again"
            if unknown := sorted(set(join.keys.values()) - set(self._entities.columns)):
                return f"the entity rows have no column {', '.join(unknown)}, which is a join key of {join.view}"
        return f"the point-in-time join failed: {_line(error)}"

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result where Feast says, as its DuckDB store does."""
        import ibis
        from feast.infra.offline_stores.duckdb import _write_data_source

        _write_data_source(ibis.memtable(self.to_arrow()), storage.to_data_source(), "", "overwrite", allow_overwrite)


class _Step:
    """One on-demand view: its columns computed by the very function the service calls."""

    def __init__(self, view: OnDemandFeatureView, refs: Sequence[str], full: bool) -> None:
        self._view = view
        self._full = full
        parts = view.source_feature_view_projections.values()
        stored = [(f"{_base(p)}__{f.name}" if full else f.name, f.name) for p in parts for f in p.features]
        self._inputs = [*((name, name) for name in view.get_request_data_schema()), *stored]
        name = view.projection.name_to_use()
        wanted = [ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == name]
        self.outputs = {feature: f"{_base(view.projection)}__{feature}" if full else feature for feature in wanted}
        self._types = {f.name: feast_value_type_to_pa(f.dtype.to_value_type()) for f in view.features}

    def appended(self, table: pa.Table, lists: dict[str, list[Any]]) -> pa.Table:
        """The table with this view's columns; ``lists`` keeps columns already turned into Python objects."""
        if missing := [column for column, _ in self._inputs if column not in table.column_names]:
            msg = f"the entity rows have no column {', '.join(missing)}, which on-demand view {self._view.name} reads"
            raise DataError(msg)
        # Other modes and one-row functions are rare and run as Feast runs them.
        if self._view.mode != "python" or self._view.singleton:
            computed = self._view.transform_arrow(table.select([column for column, _ in self._inputs]), self._full)
            for feature, name in self.outputs.items():
                table = table.append_column(name, computed[name].cast(self._types[feature]))
            return table
        inputs = {}
        for column, name in self._inputs:
            if column not in lists:
                lists[column] = plain(table[column])
            # A copy of its own: what one function does to its input must not reach the next.
            inputs[name] = list(lists[column])
        answers = self._view.feature_transformation.udf(inputs)
        if missing := sorted(set(self.outputs) - set(answers)):
            msg = f"on-demand view {self._view.name} returns no {', '.join(missing)}, which it declares"
            raise DataError(msg)
        for feature, name in self.outputs.items():
            table = table.append_column(name, pa.array(answers[feature], self._types[feature]))
        return table


def plain(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python objects. Arrow takes 2 µs for a timestamp with a zone; by way of numpy it is 0.2 µs."""
    if not (pa.types.is_timestamp(column.type) and column.type.tz):
        values: list[Any] = column.to_pylist()
        return values
    moments = column.cast(pa.timestamp("us", column.type.tz)).to_numpy().astype(object)
    return [None if moment is None else moment.replace(tzinfo=UTC) for moment in moments]


def _whole(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _entities(given: pd.DataFrame | str) -> Entities:
    if isinstance(given, pd.DataFrame):
        stamp = offline_utils.infer_event_timestamp_from_entity_df(dict(given.dtypes))
        frame = given
        if not isinstance(given[stamp].dtype, pd.DatetimeTZDtype):
            frame = given.copy(deep=False)
            try:
                frame[stamp] = pd.to_datetime(given[stamp], utc=True)
            except ValueError as error:
                msg = f"column {stamp} of the entity rows holds no moments ({_line(error)})"
                raise DataError(msg) from error
        return Entities(frame, stamp, tuple(str(c) for c in given.columns))
    sql = given.strip().rstrip(";")
    # A query is no path, and too long for one to be asked about.
    if len(sql) < _LONGEST_PATH and (Path(sql).suffix == ".parquet" or Path(sql).is_dir()):
        sql = f"FROM read_parquet('{_escaped(sql)}')"
    try:
        with _connection() as connection:
            types = dict(connection.sql(f"SELECT * FROM ({sql}\n) LIMIT 0").df().dtypes)
    except duckdb.Error as error:
        msg = f"the entity rows cannot be read from {given!r} ({_line(error)}); give a frame, SQL or a parquet file"
        raise DataError(msg) from error
    return Entities(sql, offline_utils.infer_event_timestamp_from_entity_df(types), tuple(types))


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """Its types as Arrow's, the same for every chunk; a column without any value is text."""
    try:
        schema = pa.Schema.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        msg = f"the entity rows have a column of mixed types ({_line(error)}); give it one type"
        raise DataError(msg) from error
    return pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])


def _picked(f: str, join: Join, stamp: str) -> list[str]:
    fresh = _fresh(f, join, stamp)
    return [f"CASE WHEN {fresh} THEN {f}.{_quoted(c)} END AS {_quoted(n)}" for c, n in join.columns.items()]


def _dated(f: str, join: Join, stamp: str) -> list[str]:
    return [f"CASE WHEN {_fresh(f, join, stamp)} THEN {f}.{AT} END AS {_quoted(join.view)}"]


def _fresh(f: str, join: Join, stamp: str) -> str:
    if join.ttl is None:
        return f"{f}.{AT} IS NOT NULL"
    return f"{f}.{AT} >= e.{stamp} - INTERVAL {join.ttl // timedelta(microseconds=1)} MICROSECONDS"


def _table(join: Join, first: datetime | None, last: datetime | None) -> str:
    """SQL of a view's rows that can matter between two moments, each with the moment from which it is seen."""
    names = dict.fromkeys([*join.keys, *join.columns])
    stamp, created = f"{_quoted(join.stamp)}::TIMESTAMPTZ", join.created and f"{_quoted(join.created)}::TIMESTAMPTZ"
    keys = ", ".join(_quoted(name) for name in join.keys) or "1"
    seen = f"greatest({stamp}, {created})" if join.by_created and created else stamp
    picked = "".join(f"{_quoted(name)}, " for name in names)
    sql = f"SELECT {picked}{stamp} AS {AT}, {seen} AS {SEEN} FROM read_parquet('{_escaped(join.path)}')"
    limits = []
    if last is not None and first is not None:
        limits.append(f"{stamp} <= {_moment(last)}")
        if join.ttl is not None:
            limits.append(f"{stamp} >= {_moment(first - join.ttl)}")
    if join.by_created and created:
        limits.append(f"{created} IS NOT NULL")
    sql += f" WHERE {' AND '.join(limits)}" if limits else ""
    if not created:
        return sql
    if join.by_created:
        # A row that is already outdated when it becomes visible is never joined; of the rest the newest visible is.
        rank = f"row({stamp}, {created})"
        return f"{sql} QUALIFY {rank} >= max({rank}) OVER (PARTITION BY {keys} ORDER BY {seen})"
    order = f"{created} DESC NULLS LAST"
    return f"{sql} QUALIFY row_number() OVER (PARTITION BY {keys}, {stamp} ORDER BY {order}) = 1"


def _join(view: FeatureView, refs: Sequence[str], full: bool, by_created: bool) -> Join:
    source, name = view.batch_source, view.projection.name_to_use()
    mine = {entity.name: entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID}
    keys = {k: view.projection.join_key_map.get(k, v) for k, v in mine.items()}
    features = [ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == name]
    columns = {f: f"{_base(view.projection)}__{f}" if full else f for f in features}
    raw = {new: old for old, new in source.field_mapping.items()}
    return Join(
        view=name,
        path=str(source.path),
        keys={raw.get(k, k): v for k, v in keys.items()},
        columns={raw.get(c, c): n for c, n in columns.items()},
        stamp=raw.get(source.timestamp_field, source.timestamp_field),
        created=raw.get(source.created_timestamp_column, source.created_timestamp_column) or None,
        ttl=view.ttl if view.ttl and view.ttl > timedelta(0) else None,
        by_created=by_created,
    )


def _base(projection: Any) -> str:
    # Result columns carry no version suffix (feast 0.67).
    return str(projection.name_alias or projection.name)


def _is_local_parquet(view: FeatureView) -> bool:
    source = view.batch_source
    return (
        isinstance(source, FileSource)
        and "://" not in str(source.path)
        and (source.file_format is None or "Parquet" in type(source.file_format).__name__)
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _moment(at: datetime) -> str:
    return f"'{at.astimezone(UTC).isoformat()}'::TIMESTAMPTZ"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _escaped(path: str) -> str:
    return path.replace("'", "''")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
