"""Turns the logs into frames: one row per record, one typed column per field.

Types come from the contract, never from the data: an identifier "01" stays a string, a whole number stays one
beside nulls, and a column that is null in every row still has its type. A line that is not a whole record (torn
by a kill, damaged on disk, or without the fields that make it one) is counted, never guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd

from service.contract import Contract, Dtype, FieldSpec

_SQL: dict[Dtype, str] = {
    "float": "DOUBLE",
    "int": "BIGINT",
    "str": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
}
_PANDAS = {
    "DOUBLE": "float64",
    "BIGINT": "Int64",
    "VARCHAR": "object",
    "BOOLEAN": "boolean",
    "TIMESTAMPTZ": "datetime64[us, UTC]",
}
_STAGES = ("lookup", "validate", "primary", "fallback", "post", "total")
# Null for requests of no split.
_SPLIT = {
    "arm": "VARCHAR",
    "split": "VARCHAR",
    "split_revision": "BIGINT",
    "split_share": "DOUBLE",
    "split_unit": "VARCHAR",
}
_VIOLATIONS = "STRUCT(feature VARCHAR, kind VARCHAR, message VARCHAR)[]"


@dataclass(frozen=True)
class Export:
    """One log as a frame.

    Attributes:
        frame: one row per whole record, in the order written.
        damaged_lines: lines that were not a whole record.
    """

    frame: pd.DataFrame
    damaged_lines: int


@dataclass(frozen=True)
class Column:
    """One column of a frame: its name, SQL type, and the expression that reads it."""

    name: str
    sql_type: str
    expression: str


def predictions(log_dir: Path, contract: Contract) -> Export:
    """Read the prediction log.

    Columns: the log's scalar fields under their names; ``request.<field>``, ``vector.<feature>``,
    ``event_time.<view>``, ``ms.<stage>`` (milliseconds); ``violations`` as a count; ``shadows`` the slots it was
    offered to, separated by commas, null in logs from before there were several; ``redacted`` the names whose values
    the record does not hold, likewise (see :mod:`monitoring.redacted`).
    """
    views = tuple(view.name for view in contract.views)
    scalars = {
        "request_id": "VARCHAR",
        "at": "TIMESTAMPTZ",
        "role": "VARCHAR",
        "model_version": "VARCHAR",
        "model_digest": "VARCHAR",
        "prediction": "DOUBLE",
        "confidence": "VARCHAR",
        "fallback_reason": "VARCHAR",
        "shadow_sampled": "BOOLEAN",
        "service_version": "VARCHAR",
        **_SPLIT,
    }
    wanted = (
        scalar_columns(scalars)
        + _members("request", "request", _types(contract.request_fields))
        + _members("vector", "vector", _types(contract.fields))
        + _members("event_times", "event_time", dict.fromkeys(views, "TIMESTAMPTZ"))
        + _members("stages_ms", "ms", dict.fromkeys(_STAGES, "DOUBLE"))
        + [Column("violations", "BIGINT", f"coalesce(len({_quoted('violations')}), 0)")]
        + [Column("shadows", "VARCHAR", f"array_to_string({_quoted('shadows')}, ',')")]
        + [Column("redacted", "VARCHAR", f"coalesce(array_to_string({_quoted('redacted')}, ','), '')")]
    )
    schema = {
        **scalars,
        "request": _struct(_types(contract.request_fields)),
        "vector": _struct(_types(contract.fields)),
        "stages_ms": _struct(dict.fromkeys(_STAGES, "DOUBLE")),
        "violations": _VIOLATIONS,
        "shadows": "VARCHAR[]",
        "redacted": "VARCHAR[]",
    }
    if views:
        schema["event_times"] = _struct(dict.fromkeys(views, "TIMESTAMPTZ"))
    return read_log(log_dir / "predictions", schema, wanted, required=("request_id", "at", "role", "prediction"))


def shadow(log_dir: Path) -> Export:
    """Read the shadow log; columns as in the log, ``prediction`` null where the shadow gave no number.

    ``shadow`` is null in logs from before there were several slots, and ``primary`` where that one was asked again.
    """
    schema = {
        "request_id": "VARCHAR",
        "at": "TIMESTAMPTZ",
        "shadow": "VARCHAR",
        "outcome": "VARCHAR",
        "reason": "VARCHAR",
        "model_version": "VARCHAR",
        "model_digest": "VARCHAR",
        "prediction": "DOUBLE",
        "latency_ms": "DOUBLE",
        "batch": "BIGINT",
    }
    return read_log(log_dir / "shadow", schema, scalar_columns(schema), required=("request_id", "outcome"))


def labels(log_dir: Path) -> Export:
    """Read the label log, every line of it; :func:`monitoring.labels.resolve` picks the one that counts."""
    schema = {"request_id": "VARCHAR", "label": "DOUBLE", "known_at": "TIMESTAMPTZ", "at": "TIMESTAMPTZ"}
    return read_log(log_dir / "labels", schema, scalar_columns(schema), required=("request_id", "label", "known_at"))


def read_log(folder: Path, schema: Mapping[str, str], wanted: Sequence[Column], required: tuple[str, ...]) -> Export:
    """Read every segment of a log.

    Args:
        schema: JSON type of each field that is read, in DuckDB's words.
        wanted: the frame's columns.
        required: fields without which a line is damaged.
    """
    segments = sorted(str(path) for path in folder.glob("*.jsonl"))
    if not segments:
        return Export(_typed(pd.DataFrame({column.name: [] for column in wanted}), wanted), 0)
    whole = " AND ".join(f"{_quoted(name)} IS NOT NULL" for name in required)
    # A writer's closing line is no record and no damage.
    schema = {**schema, "closed": "BOOLEAN"}
    select = ", ".join(f"{column.expression} AS {_quoted(column.name)}" for column in wanted)
    with duckdb.connect() as connection:
        # With ignore_errors a line that is no JSON object becomes a row of nulls, and a value of another type
        # than declared becomes null; both are caught by the fields a record cannot be without.
        frame = connection.execute(
            f"SELECT {select}, {whole} AS is_whole "
            "FROM read_json(?, format='newline_delimited', ignore_errors=true, columns=?) "
            "WHERE closed IS NULL",
            [segments, dict(schema)],
        ).df()
    is_whole = frame.pop("is_whole").to_numpy(dtype=bool)
    kept = frame if is_whole.all() else frame[is_whole].reset_index(drop=True)
    return Export(_typed(kept, wanted), int((~is_whole).sum()))


def _typed(frame: pd.DataFrame, wanted: Sequence[Column]) -> pd.DataFrame:
    return frame.astype({column.name: _PANDAS[column.sql_type] for column in wanted}, copy=False)


def scalar_columns(types: Mapping[str, str]) -> list[Column]:
    """Return a column for each field of a plain type, under its own name."""
    return [Column(name, sql_type, _quoted(name)) for name, sql_type in types.items()]


def _members(source: str, prefix: str, types: Mapping[str, str]) -> list[Column]:
    return [
        Column(f"{prefix}.{name}", sql_type, f"{_quoted(source)}.{_quoted(name)}") for name, sql_type in types.items()
    ]


def _types(fields: Sequence[FieldSpec]) -> dict[str, str]:
    return {spec.name: _SQL[spec.dtype] for spec in fields}


def _struct(types: Mapping[str, str]) -> str:
    return "STRUCT(" + ", ".join(f"{_quoted(name)} {sql_type}" for name, sql_type in types.items()) + ")"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
