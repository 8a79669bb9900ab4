"""Checks prepared tables against the feature definitions: the last gate before anything is replaced. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from service.contract import Contract, FieldSpec, ViewSpec
from service.errors import DataError

SHOWN = 3
STAMP = "event_timestamp"
TRUTH = ("label", "label_known_at", "usable")


def conform(tables: Mapping[str, pd.DataFrame], contract: Contract) -> None:
    """Check every table a training reads.

    Args:
        tables: one per feature view, and ``rows``.
        contract: the widest feature service's.

    Raises:
        DataError: when a table or column is missing, or a value is outside its contract; names table, column and
            the first bad rows by key and time.
    """
    for view in contract.views:
        conform_view(view, tables.get(view.name), contract)
    _rows(_with_columns("rows", tables.get("rows"), _row_columns(contract)), contract)


def conform_view(view: ViewSpec, given: pd.DataFrame | None, contract: Contract) -> None:
    """Check the rows of one feature view.

    Raises:
        DataError: as :func:`conform`.
    """
    keys = {spec.name: spec for spec in contract.keys}
    limits = {spec.name: spec for spec in contract.fields}
    table = _with_columns(view.name, given, [*view.keys, *view.features, STAMP])
    for key in view.keys:
        _refuse(view.name, table, key, table[key].isna(), "have no key", view.keys)
        _allowed(view.name, table, keys[key], view.keys)
    for feature in view.features:
        # What only on-demand views read is no input of a model and has no limits here.
        if feature in limits:
            _value(view.name, table, limits[feature], view.keys)
        elif isinstance(table[feature].dtype, pd.DatetimeTZDtype):
            parts = table[feature].notna() & (table[feature] != table[feature].dt.floor("s"))
            fault = "have parts of a second, which the online store does not keep"
            _refuse(view.name, table, feature, parts, fault, view.keys)
    twice = table.duplicated([*view.keys, STAMP], keep=False)
    _refuse(view.name, table, STAMP, twice, "share key and time, so that either could be joined", view.keys)


def _row_columns(contract: Contract) -> list[str]:
    return ["request_id", STAMP, *(spec.name for spec in contract.request_fields), *TRUTH]


def _rows(rows: pd.DataFrame, contract: Contract) -> None:
    by = ("request_id",)
    _refuse("rows", rows, "request_id", rows["request_id"].duplicated(keep=False), "are not unique", by)
    for spec in contract.request_fields:
        _value("rows", rows, spec, by)
        _allowed("rows", rows, spec, by)
    label, known = rows["label"], rows["label_known_at"]
    _refuse("rows", rows, "label", label.notna() & ~label.isin([0.0, 1.0]), "are not 0, 1 or null", by)
    _refuse("rows", rows, "label_known_at", label.isna() != known.isna(), "are null where the label is not, or not", by)
    _refuse("rows", rows, "label_known_at", known < rows[STAMP], "are before the moment of judging", by)
    _refuse("rows", rows, "usable", rows["usable"] & label.isna(), "are usable without a label", by)


def _value(name: str, table: pd.DataFrame, spec: FieldSpec, by: Sequence[str]) -> None:
    values = table[spec.name]
    if not spec.nullable:
        _refuse(name, table, spec.name, values.isna(), "are null and must not be", by)
    if spec.minimum is not None:
        _refuse(name, table, spec.name, values < spec.minimum, f"are below {spec.minimum:g}", by)
    if spec.maximum is not None:
        _refuse(name, table, spec.name, values > spec.maximum, f"are above {spec.maximum:g}", by)
    if spec.earliest is not None:
        _refuse(name, table, spec.name, values < table[STAMP] + spec.earliest, f"are before now+{spec.earliest}", by)
    if spec.latest is not None:
        _refuse(name, table, spec.name, values > table[STAMP] + spec.latest, f"are after now+{spec.latest}", by)


def _allowed(name: str, table: pd.DataFrame, spec: FieldSpec, by: Sequence[str]) -> None:
    if spec.allowed:
        wrong = table[spec.name].notna() & ~table[spec.name].isin(spec.allowed)
        _refuse(name, table, spec.name, wrong, f"are not one of {', '.join(spec.allowed)}", by)


def _with_columns(name: str, table: pd.DataFrame | None, columns: Sequence[str]) -> pd.DataFrame:
    if table is None:
        msg = f"training/source.py makes no table {name}, which feature_repo/features.py defines"
        raise DataError(msg)
    if missing := [c for c in columns if c not in table.columns]:
        msg = f"{name}: columns {', '.join(missing)} are missing; add them in training/source.py"
        raise DataError(msg)
    if table.empty:
        msg = f"{name}: has no rows; check the raw tables and training/source.py"
        raise DataError(msg)
    if str(table[STAMP].dtype) != "datetime64[us, UTC]":
        # DuckDB 2.0 cannot materialize nanoseconds.
        msg = f"{name}.{STAMP} is {table[STAMP].dtype}, not datetime64[us, UTC]; convert it in training/source.py"
        raise DataError(msg)
    if table[STAMP].isna().any():
        msg = f"{name}.{STAMP}: {int(table[STAMP].isna().sum())} rows are null; check training/source.py"
        raise DataError(msg)
    return table


def _refuse(name: str, table: pd.DataFrame, column: str, bad: pd.Series[bool], fault: str, by: Sequence[str]) -> None:
    if not bad.any():
        return
    first = table.loc[bad.to_numpy()].head(SHOWN)
    shown = ", ".join(_place(row, by, column) for _, row in first.iterrows())
    msg = f"{name}.{column}: {int(bad.sum())} rows {fault} ({shown}); repair the raw table or change the contract"
    raise DataError(msg)


def _place(row: pd.Series[Any], by: Sequence[str], column: str) -> str:
    where = " ".join(str(row[key]) for key in by)
    return f"{where} at {row[STAMP]:%Y-%m-%dT%H:%MZ}: {row[column]}"
