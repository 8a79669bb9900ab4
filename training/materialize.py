"""Brings the online store to what is known now: incremental, repeatable, finished by the next run when killed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from feature_repo import features as definitions
from service.clock import clock_from, parse_instant
from service.definitions import contracts
from service.errors import UnderstudyError
from service.settings import Settings, settings
from service.vector import describe
from training.prepare import prepare
from training.store import Filled, apply, materialize, named_faults, open_store


def fill(settings_: Settings, at: datetime, raw: Path | None = None, *, progress: bool = False) -> list[Filled]:
    """Prepare the feature tables if the raw ones changed, and bring the online store to what was known at ``at``.

    Raises:
        UnderstudyError: when a table is damaged or the store cannot be written; what was stored stays.
    """
    prepare(settings_, raw)
    with named_faults(settings_):
        store = open_store(settings_)
        apply(store, settings_)
        return materialize(store, contracts(definitions)["primary"], at, progress=progress)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make materialize", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--as-of", type=parse_instant, help="ISO date or instant (UTC); default: the clock's now")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    args = parser.parse_args(argv)
    try:
        at = args.as_of or clock_from(settings().clock).now()
        filled = fill(settings(), at, args.raw, progress=sys.stderr.isatty())
    except UnderstudyError as error:
        print(f"materialize: {error}", file=sys.stderr)
        return 2
    for view in filled:
        print(line(view, at))
    print(json.dumps({"at": at.isoformat(), "written": sum(v.written for v in filled), "views": _plain(filled, at)}))
    return 0


def line(view: Filled, at: datetime) -> str:
    """What a person reads of one view."""
    age = f"newest {describe(at - view.newest)} old" if view.newest else "nothing known yet"
    return f"{view.view:24} {view.keys:8,} keys {view.written:8,} written   {age}"


def _plain(filled: Sequence[Filled], at: datetime) -> dict[str, Any]:
    return {
        v.view: {
            "keys": v.keys,
            "written": v.written,
            "age_s": None if v.newest is None else (at - v.newest).total_seconds(),
        }
        for v in filled
    }


if __name__ == "__main__":
    sys.exit(main())
