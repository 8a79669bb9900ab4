"""Runs the contract's suite of expectations on the joined rows: what every training does before it fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from feature_repo import features as definitions
from service.clock import parse_instant
from service.contract import Contract
from service.definitions import contracts
from service.errors import UnderstudyError
from service.progress import Progress, Say
from service.settings import Settings, settings
from service.validation import Tolerances, Validation, seated_baseline, validate
from training.dataset import join_features
from training.fitting import LEAST_ROWS, known_rows
from training.prepare import prepare
from training.store import apply, open_store

# Source of the bands: no two trainings between 15 February and the end of the reference year differ by more than 2.6
# standard deviations in a mean, or by more than 0.3 of its spread in a null rate.
TOLERANCES = Tolerances(rows=LEAST_ROWS, fresh=timedelta(days=7), mean=3.0, nulls=0.5)


def validate_rows(
    settings_: Settings, name: str, frame: pd.DataFrame, contract: Contract, at: datetime, say: Say
) -> Validation:
    """Run the suite on joined rows; the page is written to ``validation/<name>`` in the state folder.

    Args:
        frame: what :func:`training.dataset.join_features` returns for rows known at ``at``.
    """
    # Great Expectations takes 5 s to import: not before the arguments are known to be good.
    from service.expectations import suite

    baseline = seated_baseline(settings_.models_dir, contract)
    expected = suite(contract, name=name, at=at, tolerances=TOLERANCES, baseline=baseline)
    return validate(frame, expected, settings_.state_dir / "validation" / name, say)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object; exit code 1 when an expectation failed."""
    parser = argparse.ArgumentParser(prog="make validate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--as-of", required=True, type=parse_instant, help="ISO date or instant (UTC)")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    args = parser.parse_args(argv)
    say = Progress(sys.stdout)
    try:
        found = _run(settings(), args.as_of, args.raw, say)
    except UnderstudyError as error:
        print(f"validate: {error}", file=sys.stderr)
        return 2
    for failure in found.failures:
        print(f"validate: {failure} [{failure.expectation}]", file=sys.stderr)
    print(found.record())
    return 0 if found.passed else 1


def _run(settings_: Settings, at: datetime, raw: Path | None, say: Say) -> Validation:
    prepared = prepare(settings_, raw)
    say(f"prepared {prepared['rows']['rows']:,} rows")
    store = open_store(settings_)
    apply(store, settings_)
    rows = known_rows(pd.read_parquet(settings_.state_dir / "rows.parquet"), at)
    contract = contracts(definitions)["primary"]
    return validate_rows(settings_, "training", join_features(store, rows, contract), contract, at, say)


if __name__ == "__main__":
    sys.exit(main())
