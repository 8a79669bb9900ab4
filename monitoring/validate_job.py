"""Runs the suite training rows must meet on logged vectors: ``python -m monitoring.validate_job``.

Lines for people, then as the last line one JSON object: ``expectations, failed, rows, docs``. Exits 1 when an
expectation failed, 2 when nothing could be validated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from monitoring import export
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import UnderstudyError
from service.settings import Settings, settings
from service.validation import ID, STAMP, Tolerances, Validation, seated_baseline, validate

# Wider than in training: a window holds one stretch of the year, and what broke the contract is logged as it was.
# Source of the null band: single weeks of the reference year lie up to 1.3 spreads from the months before them.
TOLERANCES = Tolerances(rows=100, fresh=timedelta(days=1), mostly=0.99, mean=3.0, nulls=1.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate the newest window and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = _run(settings(), options)
    except UnderstudyError as error:
        sys.stderr.write(f"validate: {error}\n")
        return 2
    sys.stderr.writelines(f"validate: {failure} [{failure.expectation}]\n" for failure in found.failures)
    sys.stdout.write(f"{found.record()}\n")
    return 0 if found.passed else 1


def vectors(frame: pd.DataFrame, contract: Contract, since: datetime) -> pd.DataFrame:
    """Return the logged vectors at or after a moment as training's columns.

    Args:
        frame: as :func:`monitoring.export.predictions` returns it.
    """
    names = {ID: ID, "at": STAMP, **{f"vector.{name}": name for name in contract.features}}
    return frame.loc[frame["at"] >= pd.Timestamp(since), list(names)].rename(columns=names)


def _run(settings_: Settings, options: argparse.Namespace) -> Validation:
    # Reading the definitions imports Feast, and the suite Great Expectations: not before the arguments are good.
    from feature_repo import features
    from service.definitions import contracts
    from service.expectations import suite

    contract = contracts(features)["primary"]
    now = clock_from(settings_.clock).now()
    since = now - duration(options.window, "--window")
    logged = export.predictions(options.logs or settings_.log_dir, contract)
    expected = suite(
        contract,
        name="vectors",
        at=now,
        tolerances=TOLERANCES,
        label=False,
        baseline=seated_baseline(settings_.models_dir, contract),
    )
    folder = settings_.state_dir / "validation" / "vectors"
    return validate(vectors(logged.frame, contract, since), expected, folder, lambda text: print(f"  {text}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="validate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--window", default="7d", help="how far back from now (default 7d)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
