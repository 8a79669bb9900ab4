"""Raw tables to feature tables and labelled rows, all or nothing."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from feature_repo import features as definitions
from service.definitions import contracts
from service.errors import DataError, UnderstudyError
from service.settings import Settings, settings
from training import conform as checks
from training import damage, source, windows
from training.conform import conform

STAMP = "prepared.json"


def prepare(settings_: Settings, raw_folder: Path | None = None) -> dict[str, Any]:
    """Make ``features/<view>.parquet`` and ``rows.parquet`` and return what was made, with data hashes.

    Skipped when nothing changed since the last time. Everything is written beside the old files and moved at the
    end, so that a damaged table or a kill leaves the old ones whole.

    Raises:
        DataError: when a raw table is damaged or a prepared one does not fit the definitions.
    """
    files = source.raw_files(raw_folder)
    hashes = {name: _hash(path) for name, path in sorted(files.items())}
    contract = contracts(definitions)["primary"]
    made_by = "".join(_hash(Path(str(module.__file__))) for module in (source, windows, damage, checks))
    code = hashlib.sha256((made_by + contract.digest).encode()).hexdigest()
    if found := _current(settings_, hashes, code):
        return found
    raw = source.raw_tables(raw_folder)
    tables = {**source.feature_tables(raw), "rows": source.labelled_rows(raw)}
    conform(tables, contract)
    made = {"raw": hashes, "code": code, "rows": {name: len(table) for name, table in tables.items()}}
    _write(settings_, tables, made)
    return made


def _current(settings_: Settings, hashes: dict[str, str], code: str) -> dict[str, Any] | None:
    found = _read(settings_.state_dir / STAMP)
    if not found or (found.get("raw"), found.get("code")) != (hashes, code):
        return None
    whole = all(_place(settings_.state_dir, name).exists() for name in found.get("rows", {}))
    return found if whole else None


def _place(folder: Path, table: str) -> Path:
    return folder / ("rows.parquet" if table == "rows" else f"features/{table}.parquet")


def _write(settings_: Settings, tables: dict[str, pd.DataFrame], made: dict[str, Any]) -> None:
    state = settings_.state_dir
    staging = state / ".prepare"
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "features").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(_place(staging, name), index=False, coerce_timestamps="us", compression="zstd")
    (state / STAMP).unlink(missing_ok=True)
    settings_.features_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.rglob("*.parquet")):
        path.replace(state / path.relative_to(staging))
    # The stamp comes last: without it the next run prepares again.
    (staging / STAMP).write_text(json.dumps(made))
    (staging / STAMP).replace(state / STAMP)
    shutil.rmtree(staging)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        msg = f"{path.name}: cannot be read ({error}); restore the file"
        raise DataError(msg) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make prepare", description=__doc__)
    parser.add_argument("--raw", type=Path, help="folder with the raw tables; default: the installed data package")
    args = parser.parse_args(argv)
    begun = time.perf_counter()
    try:
        made = prepare(settings(), args.raw)
    except UnderstudyError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**made["rows"], "seconds": round(time.perf_counter() - begun, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
