"""Copies the logs into PostgreSQL: ``python -m monitoring.shipping_job`` (`make ship DSN=postgresql://...`).

The DSN is the setting ``ship_dsn``; without it libpq's own variables and files say where (``PGHOST``, ``PGPASSFILE``).
Prints, as its last line, one JSON object: ``segments, rows, damaged, already, seconds, behind_bytes, missing``. Exits
1 when the server cannot be reached or written, 2 when there is nothing to ship or the tables or files are not ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.shipping import Shipped, connect, ship, unsecret
from service.clock import WallClock
from service.errors import UnderstudyError
from service.settings import settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Ship once, or again and again for a while, and return the exit code."""
    options = _parser().parse_args(arguments)
    dsn = settings().ship_dsn.get_secret_value()
    begun = time.monotonic()
    done: Shipped | None = None
    while True:
        try:
            with connect(dsn) as db:
                found = ship(db, options.logs or settings().log_dir, _say)
            done = found if done is None else _joined(done, found)
            write_series(settings().state_dir / "monitoring", found)
            code = 0
        except UnderstudyError as error:
            sys.stderr.write(f"ship: {error}\n")
            return 2
        except psycopg.Error as error:
            # Details may quote a row.
            text = unsecret(" ".join((error.diag.message_primary or str(error)).split()), dsn)
            sys.stderr.write(f"ship: {text}; nothing is lost, the next run goes on where the last commit was\n")
            code = 1
        if options.follow is None or time.monotonic() + options.follow - begun > options.span:
            break
        time.sleep(options.follow)
    if done is not None:
        _say(_summary(done))
        sys.stdout.write(f"{json.dumps({**done.plain(), 'seconds': round(time.monotonic() - begun, 3)})}\n")
    return code


def write_series(folder: Path, found: Shipped) -> None:
    """Write how far the database is behind, for ``/jobs/metrics``."""
    registry = CollectorRegistry()
    Gauge(
        "understudy_ship_behind_bytes",
        "Bytes of the logs that were not copied at the last shipping.",
        registry=registry,
    ).set(found.behind_bytes)
    Gauge(
        "understudy_ship_last_success_timestamp_seconds", "When logs were last shipped without an error.",
        registry=registry,
    ).set(WallClock().now().timestamp())  # fmt: skip
    missing = Gauge(
        "understudy_ship_missing_records", "Numbered records that the database does not hold.", ["log"],
        registry=registry,
    )  # fmt: skip
    for log, count in found.missing.items():
        missing.labels(log).set(count)
    folder.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(folder / "ship.prom"), registry)


def _joined(before: Shipped, last: Shipped) -> Shipped:
    return replace(
        last, rows=before.rows + last.rows, damaged=before.damaged + last.damaged, already=before.already
    )  # fmt: skip


def _summary(found: Shipped) -> str:
    missing = ", ".join(f"{count:,} of {log}" for log, count in found.missing.items() if count)
    return (
        f"{found.rows:,} rows copied, {found.already:,} were there, {found.damaged:,} damaged lines put aside; "
        f"{found.behind_bytes:,} bytes behind" + (f"; missing by their numbers: {missing}" if missing else "")
    )


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        msg = f"{text} is not a number of seconds above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make ship", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--follow", type=_seconds, help="ship again after so many seconds, again and again")
    parser.add_argument("--for", dest="span", type=_seconds, default=3600.0, help="end --follow after so many seconds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
