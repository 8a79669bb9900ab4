"""Runs the suite training rows must meet on logged vectors: ``python -m monitoring.validate_job``.

Lines for people, then as the last line one JSON object: ``expectations, failed, rows, docs, redacted`` (features whose
values are not in every record; nothing is expected of them). Exits 1 when an expectation failed, 2 when nothing could
be validated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from monitoring import export
from monitoring.redacted import removed
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import DataError, UnderstudyError
from service.settings import Settings, settings
from service.validation import ID, STAMP, Tolerances, Validation, seated_baseline, validate

# Wider than in training: a window holds one stretch of the year, and what broke the contract is logged as it was.
# Source of the null band: single weeks of the reference year lie up to 1.3 spreads from the months before them.
TOLERANCES = Tolerances(rows=100, fresh=timedelta(days=1), mostly=0.99, mean=3.0, nulls=1.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate the newest window and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found, without = _run(settings(), options)
    except UnderstudyError as error:
        sys.stderr.write(f"validate: {error}\n")
        return 2
    sys.stderr.writelines(f"validate: {failure} [{failure.expectation}]\n" for failure in found.failures)
    if without:
        sys.stderr.write(f"validate: not looked at, because the log does not hold their values: {', '.join(without)}\n")
    sys.stdout.write(f"{json.dumps({**json.loads(found.record()), 'redacted': without})}\n")
    return 0 if found.passed else 1


def vectors(frame: pd.DataFrame, contract: Contract, since: datetime) -> pd.DataFrame:
    """Return the logged vectors at or after a moment as training's columns.

    Args:
        frame: as :func:`monitoring.export.predictions` returns it.
    """
    names = {ID: ID, "at": STAMP, **{f"vector.{name}": name for name in contract.features}}
    return frame.loc[frame["at"] >= pd.Timestamp(since), list(names)].rename(columns=names)


def visible(frame: pd.DataFrame, contract: Contract, since: datetime) -> Contract:
    """Return the contract of the features that every record since a moment holds.

    Raises:
        DataError: when there is none.
    """
    gone = removed(frame.loc[frame["at"] >= pd.Timestamp(since)])
    fields = tuple(spec for spec in contract.fields if spec.name not in gone)
    if contract.fields and not fields:
        msg = "every feature is redacted: the log holds nothing to validate; see the setting `redact`"
        raise DataError(msg)
    return replace(contract, fields=fields)


def _run(settings_: Settings, options: argparse.Namespace) -> tuple[Validation, list[str]]:
    # Reading the definitions imports Feast, and the suite Great Expectations: not before the arguments are good.
    from feature_repo import features
    from service.definitions import contracts
    from service.expectations import suite

    contract = contracts(features)["primary"]
    now = clock_from(settings_.clock).now()
    since = now - duration(options.window, "--window")
    logged = export.predictions(options.logs or settings_.log_dir, contract)
    seen = visible(logged.frame, contract, since)
    expected = suite(
        seen,
        name="vectors",
        at=now,
        tolerances=TOLERANCES,
        label=False,
        baseline=seated_baseline(settings_.models_dir, contract),
    )
    folder = settings_.state_dir / "validation" / "vectors"
    found = validate(vectors(logged.frame, seen, since), expected, folder, lambda text: print(f"  {text}"))
    return found, [name for name in contract.features if name not in seen.features]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="validate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--window", default="7d", help="how far back from now (default 7d)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
