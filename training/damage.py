"""Says precisely what is wrong with a raw table."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from service.errors import DataError

SHOWN = 3
log = logging.getLogger(__name__)


def read_csv(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """Read a CSV (zipped or not) that must have certain columns; extra ones are left out.

    Raises:
        DataError: when the file is missing or unreadable, lacks columns, or has no rows.
    """
    try:
        frame = pd.read_csv(path, low_memory=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path.name}: cannot be read ({error}); restore the file"
        raise DataError(msg) from None
    if missing := sorted(set(columns) - set(frame.columns)):
        msg = f"{path.name}: columns {', '.join(missing)} are missing; found {', '.join(frame.columns)}"
        raise DataError(msg)
    if frame.empty:
        msg = f"{path.name}: has no rows; restore the file"
        raise DataError(msg)
    return frame[list(columns)]


def refuse(table: str, frame: pd.DataFrame, column: str, bad: pd.Series[bool], fault: str) -> None:
    """Raise when any row is bad, naming table, column, fault and the first bad rows (line numbers as in the file).

    Raises:
        DataError: when ``bad`` holds anywhere.
    """
    if bad.any():
        rows = frame.index[bad][:SHOWN]
        examples = ", ".join(f"line {int(i) + 2}: {_plain(frame.at[i, column])!r}" for i in rows)
        msg = f"{table}.{column}: {int(bad.sum())} rows {fault} ({examples}); repair the table"
        raise DataError(msg)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def without_repeats(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out lines that repeat an earlier one exactly, and say how many."""
    kept = frame.drop_duplicates()
    if len(kept) < len(frame):
        log.warning("%s: left out %d lines that repeat an earlier one", table, len(frame) - len(kept))
    return kept


def texts(table: str, frame: pd.DataFrame, column: str, *, nullable: bool = False) -> None:
    """Check a column of names.

    Raises:
        DataError: when a value is not text, is blank, or is null and must not be.
    """
    values = frame[column]
    wrong = values.notna() & ~values.map(lambda value: isinstance(value, str) and bool(value.strip()))
    refuse(table, frame, column, wrong, "are blank or not text")
    if not nullable:
        refuse(table, frame, column, values.isna(), "are null")


def numbers(
    table: str, frame: pd.DataFrame, column: str, low: float, high: float, *, nullable: bool, whole: bool = False
) -> pd.Series[Any]:
    """Return a column as numbers between two bounds.

    Raises:
        DataError: when a value is not a number, is out of bounds, is no whole number, or is null and must not be.
    """
    values = pd.to_numeric(frame[column], errors="coerce")
    refuse(table, frame, column, values.isna() & frame[column].notna(), "are not numbers")
    if not nullable:
        refuse(table, frame, column, values.isna(), "are null")
    if whole:
        refuse(table, frame, column, values.notna() & (values % 1 != 0), "are not whole numbers")
    refuse(table, frame, column, (values < low) | (values > high), f"are not from {low:g} to {high:g}")
    return values
