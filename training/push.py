"""Pushes feature rows to the online store as they arrive: JSON lines from a file or stdin, checked like any table.

An older row than the one stored changes nothing, so that a stream may be replayed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import pandas as pd
from feast import FeatureStore, FeatureView

from feature_repo import features as definitions
from service.clock import clock_from
from service.contract import Contract, ViewSpec
from service.definitions import contracts
from service.errors import DataError, NotReady, UnderstudyError
from service.settings import settings
from training.conform import STAMP, conform_view
from training.store import named_faults, open_store

BATCH = 1000
# A feature writer's clock may run a little ahead of ours.
AHEAD = timedelta(minutes=5)


def push(store: FeatureStore, contract: Contract, name: str, rows: pd.DataFrame, latest: pd.Timestamp) -> int:
    """Check rows of one view against the contract and push them through Feast; returns how many.

    Args:
        rows: the view's keys and features, ``event_timestamp`` as ISO text or timestamps.
        latest: a row dated after it is refused.

    Raises:
        DataError: when the view is unknown or a row is not what the contract says; nothing was written.
    """
    view = _view(contract, name)
    definition = store.get_feature_view(name)
    table = _typed(rows, definition)
    conform_view(view, table, contract)
    if (ahead := table[STAMP] > latest).any():
        msg = f"{name}.{STAMP}: {int(ahead.sum())} rows are after {latest:%Y-%m-%dT%H:%MZ}; check the writer's clock"
        raise DataError(msg)
    if definition.stream_source is None:
        store.write_to_online_store(name, table)
    else:
        store.push(definition.stream_source.name, table)
    return len(table)


def _view(contract: Contract, name: str) -> ViewSpec:
    for view in contract.views:
        if view.name == name:
            return view
    msg = f"there is no view {name}; known: {', '.join(view.name for view in contract.views)}"
    raise DataError(msg)


def _typed(rows: pd.DataFrame, definition: FeatureView) -> pd.DataFrame:
    """The rows with the types Feast writes; text that is no moment, or no number, is refused."""
    kinds = {field.name: str(field.dtype) for field in definition.features} | {STAMP: "UnixTimestamp"}
    kinds |= {field.name: str(field.dtype) for field in definition.entity_columns}
    table = rows.copy()
    for column in table.columns.intersection(list(kinds)):
        kind = kinds[column]
        if wrong := [v for v in table[column] if not _is_a(kind, v)]:
            msg = f"{definition.name}.{column}: {wrong[0]!r} is not {kind}; send {kind} values"
            raise DataError(msg)
        try:
            if kind == "UnixTimestamp":
                table[column] = pd.to_datetime(table[column], utc=True, format="ISO8601").astype("datetime64[us, UTC]")
            elif kind.startswith("Float"):
                table[column] = table[column].astype("float64")
            elif kind.startswith("Int"):
                table[column] = table[column].astype("int64" if table[column].notna().all() else "Int64")
        except (ValueError, TypeError, OverflowError) as error:
            msg = f"{definition.name}.{column}: {error}; send {kind} values"
            raise DataError(msg) from None
    return table


def _is_a(kind: str, value: Any) -> bool:
    """Whether a JSON value may stand for a type; null may for any."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, bool):
        return kind == "Bool"
    if kind.startswith("Float"):
        return isinstance(value, int | float)
    if kind.startswith("Int"):
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, str) or kind not in ("String", "UnixTimestamp")


def _lines(lines: Iterable[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows in batches, each with the number of its first line."""
    numbered = iter(enumerate(lines, 1))
    while some := list(islice(numbered, BATCH)):
        rows = []
        for number, line in some:
            try:
                row = json.loads(line)
            except ValueError as error:
                msg = f"line {number} is not JSON ({error})"
                raise DataError(msg) from None
            if not isinstance(row, dict):
                msg = f"line {number} is not a JSON object: {line.strip()[:80]}"
                raise DataError(msg)
            rows.append(row)
        yield some[0][0], rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make push", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--view", required=True, help="the feature view")
    parser.add_argument("--file", default="-", help="JSON lines: keys, features, event_timestamp; - for stdin")
    args = parser.parse_args(argv)
    pushed = 0
    try:
        if not (settings().state_dir / "registry.db").exists():
            msg = f"{settings().state_dir} holds no feature registry; run `make train` first"
            raise NotReady(msg)
        contract = contracts(definitions)["primary"]
        latest = pd.Timestamp(clock_from(settings().clock).now() + AHEAD)
        source = 0 if args.file == "-" else args.file
        with named_faults(settings()), open(source, encoding="utf-8") as lines:  # noqa: PTH123  # 0 is stdin
            store = open_store(settings())
            for first, rows in _lines(lines):
                try:
                    pushed += push(store, contract, args.view, pd.DataFrame(rows), latest)
                except DataError as error:
                    msg = f"lines {first} to {first + len(rows) - 1}: {error}"
                    raise DataError(msg) from None
    except UnicodeDecodeError as error:
        print(f"push: {args.file} is not UTF-8 text ({error}) ({pushed} rows were pushed before)", file=sys.stderr)
        return 2
    except (UnderstudyError, OSError) as error:
        print(f"push: {error} ({pushed} rows were pushed before)", file=sys.stderr)
        return 2
    print(json.dumps({"view": args.view, "pushed": pushed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
