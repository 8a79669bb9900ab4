"""The outcome of each request of a split: its label, or a number from a file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.labels import resolve
from service.errors import DataError

COLUMNS = ("request_id", "value", "at")


def from_labels(rows: pd.DataFrame, lines: pd.DataFrame, maturity: timedelta) -> tuple[pd.Series, dict[str, int]]:
    """Labels as outcomes: what was known of each request when its outcome was due.

    What becomes known later is left out, so that a unit that has played its game does not change any more.

    Args:
        rows: one row per request: ``request_id, at``.
        lines: every line of the label log.

    Returns:
        One number or NaN per row, and what was found.
    """
    due = lines["request_id"].map(rows.set_index("request_id")["at"]) + maturity
    # Of requests that are none of the split's nothing is due, and nothing can be said.
    late = lines["known_at"] > due
    truth, notes = resolve(lines[due.notna() & ~late], rows[["request_id", "at"]])
    values = rows["request_id"].map(truth.set_index("request_id")["label"]).astype("float64")
    found = {
        "labels neither 0 nor 1": notes.invalid,
        "requests with contradicting labels; the latest known counts": notes.contradictions,
        "labels known before the prediction was made, left out": notes.early,
        "labels that came after their outcome was due, left out": int((due.notna() & late).sum()),
    }
    return values, {what: n for what, n in found.items() if n}


def from_file(rows: pd.DataFrame, values: pd.DataFrame, maturity: timedelta) -> tuple[pd.Series, dict[str, int]]:
    """Numbers of a file as outcomes, by the same rule; the latest ``at`` that is not too late counts.

    Args:
        rows: one row per request: ``request_id, at``.
        values: ``request_id, value, at`` (when the number became known; null: at once).
    """
    asked = rows.set_index("request_id")["at"]
    made_at = values["request_id"].map(asked)
    finite = np.isfinite(values["value"])
    orphan = made_at.isna()
    late = values["at"] > made_at + maturity
    early = values["at"] < made_at
    good = values[finite & ~orphan & ~late & ~early].sort_values("at", kind="stable", na_position="first")
    last = good.drop_duplicates("request_id", keep="last")
    found = {
        "lines of the file without a finite number, left out": int((~finite).sum()),
        "lines of requests that are not in this split, left out": int(orphan.sum()),
        "values known before the prediction was made, left out": int(early.sum()),
        "values that came after their outcome was due, left out": int(late.sum()),
        "further values of a request; the latest known counts": len(good) - len(last),
    }
    outcome = rows["request_id"].map(last.set_index("request_id")["value"]).astype("float64")
    return outcome, {what: n for what, n in found.items() if n}


def read_values(path: Path) -> pd.DataFrame:
    """Read ``request_id,value[,at]`` from CSV, JSON lines or Parquet, by the file's ending.

    Raises:
        DataError: when it cannot be read, or a column is missing.
    """
    kinds = {".csv": _csv, ".jsonl": _lines, ".ndjson": _lines, ".parquet": pd.read_parquet}
    read = kinds.get(path.suffix)
    if read is None:
        msg = f"{path} ends in {path.suffix!r}; give one of {', '.join(kinds)}"
        raise DataError(msg)
    try:
        frame = read(path)
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error}); give a file with the columns request_id, value and, if known, at"
        raise DataError(msg) from None
    missing = [name for name in COLUMNS[:2] if name not in frame]
    if missing:
        msg = f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
        raise DataError(msg)
    if "at" not in frame:
        frame["at"] = None
    try:
        at = pd.to_datetime(frame["at"], utc=True, format="ISO8601")
    except ValueError as error:
        msg = f"{path}: a time in the column at cannot be read ({error}); write ISO 8601 with offset"
        raise DataError(msg) from None
    value = pd.to_numeric(frame["value"], errors="coerce").astype("float64")
    return pd.DataFrame({"request_id": frame["request_id"].astype(str), "value": value, "at": at})


def _csv(path: Path) -> pd.DataFrame:
    # An identifier such as 007 stays what it is.
    return pd.read_csv(path, dtype=str)


def _lines(path: Path) -> pd.DataFrame:
    return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
