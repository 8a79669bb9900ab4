"""The rows that features are joined to, from whatever Feast's caller hands over: a frame, SQL or a parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores import offline_utils

from service.errors import DataError

_LONGEST_PATH = 200


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
        with connect() as connection:
            reader = connection.sql(self.source).to_arrow_reader(rows)
            empty = True
            for batch in reader:
                empty = False
                yield pa.Table.from_batches([batch])
            if empty:
                yield reader.schema.empty_table()


def read_entities(given: pd.DataFrame | str) -> Entities:
    if isinstance(given, pd.DataFrame):
        stamp = offline_utils.infer_event_timestamp_from_entity_df(dict(given.dtypes))
        frame = given
        if not isinstance(given[stamp].dtype, pd.DatetimeTZDtype):
            frame = given.copy(deep=False)
            try:
                frame[stamp] = pd.to_datetime(given[stamp], utc=True)
            except ValueError as error:
                msg = f"column {stamp} of the entity rows holds no moments ({first_line(error)})"
                raise DataError(msg) from error
        return Entities(frame, stamp, tuple(str(c) for c in given.columns))
    sql = given.strip().rstrip(";")
    # A query is no path, and too long for one to be asked about.
    if len(sql) < _LONGEST_PATH and (Path(sql).suffix == ".parquet" or Path(sql).is_dir()):
        sql = f"FROM read_parquet('{escaped(sql)}')"
    try:
        with connect() as connection:
            types = dict(connection.sql(f"SELECT * FROM ({sql}\n) LIMIT 0").df().dtypes)
    except duckdb.Error as error:
        msg = (
            f"the entity rows cannot be read from {given!r} ({first_line(error)}); give a frame, SQL or a parquet file"
        )
        raise DataError(msg) from error
    return Entities(sql, offline_utils.infer_event_timestamp_from_entity_df(types), tuple(types))


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """Its types as Arrow's, the same for every chunk; a column without any value is text."""
    try:
        schema = pa.Schema.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        msg = f"the entity rows have a column of mixed types ({first_line(error)}); give it one type"
        raise DataError(msg) from error
    return pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])


def connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def escaped(path: str) -> str:
    return path.replace("'", "''")
