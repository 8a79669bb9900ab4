"""Reads ground truth from a file: CSV, JSON lines or Parquet with the columns ``request_id, label`` and ``at``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from service.errors import DataError

# When it became known; the log's own name for it is taken too.
TIMES = ("at", "known_at")
# What the service's route takes as an id of a request.
_ID = r"[\x21-\x7e]{1,128}"
_WORDS = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


def read_labels(path: Path, now: datetime) -> pd.DataFrame:
    """Read a file of labels; its ending says of which kind it is.

    Args:
        now: when a label without a time became known.

    Returns:
        ``line`` (from 1, without the heading), ``request_id``, ``label`` (0, 1 or NaN), ``known_at``, ``wrong`` (what
        is wrong with the line, or "").

    Raises:
        DataError: when the file is of no known kind, cannot be read, or has not the columns.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        msg = f"{path} ends in {path.suffix or 'nothing'}; needs .csv, .jsonl or .parquet"
        raise DataError(msg)
    try:
        raw = readers[path.suffix.lower()](path)
    except (OSError, ValueError, pa.ArrowException) as error:
        msg = f"{path} cannot be read: {str(error).strip() or type(error).__name__}"
        raise DataError(msg) from None
    times = [name for name in TIMES if name in raw]
    if not {"request_id", "label"} <= set(raw) or len(times) > 1:
        msg = (
            f"{path} has the columns {', '.join(map(str, raw)) or 'none'}; needs request_id, label and at most one of "
        )
        raise DataError(msg + " and ".join(TIMES))
    return _checked(raw, raw[times[0]] if times else None, now)


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)


def _jsonl(path: Path) -> pd.DataFrame:
    # Not read_json: it makes numbers of ids and times of numbers.
    import orjson

    found: list[dict[str, object]] = []
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            value = None
        # A line that is no object is a line with everything missing.
        found.append(value if isinstance(value, dict) else {})
    return pd.DataFrame(found, columns=list(dict.fromkeys(name for line in found for name in line)), dtype=object)


def _parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).astype(object)


def _checked(raw: pd.DataFrame, times: pd.Series | None, now: datetime) -> pd.DataFrame:
    ids = raw["request_id"].astype(object)
    known = ids.map(lambda value: isinstance(value, str)) & ids.astype(str).str.fullmatch(_ID)
    labels = _labels(raw["label"])
    wrong = np.where(~known, "request_id", np.where(labels.isna(), "label", ""))
    if times is None:
        known_at = pd.Series(pd.Timestamp(now), raw.index).astype("datetime64[us, UTC]")
    else:
        # Not `ne`: a list in a cell would be compared element by element.
        given = times.notna() & ~times.map(lambda value: isinstance(value, str) and value == "").astype(bool)
        read = pd.to_datetime(times.where(given).astype(object), utc=True, format="ISO8601", errors="coerce")
        # A number is a time in no unit that anybody has named.
        numbers = times.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)) & given
        wrong = np.where((wrong == "") & given & (read.isna() | numbers), "at", wrong)
        known_at = read.where(given, pd.Timestamp(now)).dt.as_unit("us")
    return pd.DataFrame(
        {
            "line": np.arange(1, len(raw) + 1), "request_id": ids.where(known, np.nan), "label": labels,
            "known_at": known_at, "wrong": wrong,
        }
    ).reset_index(drop=True)  # fmt: skip


def _labels(column: pd.Series) -> pd.Series:
    """0, 1, or NaN for anything else; true and false are something else, as they are for the service."""

    def number(value: object) -> float:
        if isinstance(value, str):
            return _WORDS.get(value.strip(), np.nan)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            return np.nan
        return float(value) if value in (0, 1) else np.nan

    return column.map(number).astype("float64")
