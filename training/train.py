"""Trains at a moment of the clock and proposes what came out: the first time as primary and fallback, then as shadow.

Nothing that became known after AS_OF is seen. Nothing is registered or seated unless every step before succeeded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from feast import FeatureStore

from feature_repo import features as definitions
from service.clock import parse_instant
from service.definitions import contracts
from service.errors import UnderstudyError
from service.package import save_package
from service.roles import ROLES, Role, Roles, Seat, move_roles, read_roles
from service.settings import Settings, settings
from training import estimator
from training.dataset import join_features
from training.estimators import FITTERS
from training.fitting import Fitted, fit_role, known_rows
from training.prepare import prepare
from training.record import environment
from training.store import apply, materialize, open_store
from training.validate import validate_rows

SEED = 7
Say = Callable[[str], None]


def train(
    settings_: Settings,
    at: datetime,
    asked: str,
    seed: int,
    say: Say,
    raw: Path | None = None,
    estimator_name: str = "",
) -> dict[str, Any]:
    """Run a training and return what it made.

    Args:
        at: nothing known later is used.
        raw: folder of the raw tables; None for the installed data package.
        estimator_name: one of ``estimators.FITTERS`` instead of each role's own.
        asked: a role, or ``auto``: primary and fallback when nobody is primary, otherwise a shadow.

    Raises:
        UnderstudyError: when data, registry or roles do not allow it; what was there before is untouched.
    """
    prepared = prepare(settings_, raw)
    say(f"prepared {prepared['rows']['rows']:,} rows")
    before = read_roles(settings_.models_dir)
    store = open_store(settings_)
    apply(store, settings_)
    rows = known_rows(pd.read_parquet(settings_.state_dir / "rows.parquet"), at)
    fitted = []
    for role in _roles(asked, before):
        fitted.append(_fit(settings_, store, rows, role, at, seed, estimator_name, say))
        say(f"fitted {role} on {fitted[-1].rows:,} rows, AUC {fitted[-1].metrics['auc']:.4f} on the 28 days before")
    seats = _keep(settings_, fitted, before, at, seed, prepared, say)
    filled = materialize(store, contracts(definitions)["primary"], at)
    say(f"wrote {sum(f.written for f in filled):,} rows to the online store")
    return {
        "as_of": at.isoformat(),
        "roles": {role: seat.version for role, seat in seats.items()},
        **{"auc" if f.role != "fallback" else "fallback_auc": round(f.metrics["auc"], 4) for f in fitted},
    }


def _roles(asked: str, before: Roles) -> tuple[Role, ...]:
    if asked == "auto":
        return ("shadow",) if "primary" in before.seats else ("primary", "fallback")
    return tuple(role for role in ROLES if role == asked)


def _fit(
    settings_: Settings,
    store: FeatureStore,
    rows: pd.DataFrame,
    role: Role,
    at: datetime,
    seed: int,
    estimator_name: str,
    say: Say,
) -> Fitted:
    contract = contracts(definitions)[estimator.FEATURE_SERVICE[role]]
    frame = join_features(store, rows, contract)
    validate_rows(settings_, role, frame, contract, at, say).require()
    return fit_role(role, frame, contract, at, seed, estimator_name)


def _keep(
    settings_: Settings, fitted: Sequence[Fitted], before: Roles, at: datetime, seed: int, prepared: Any, say: Say
) -> dict[Role, Seat]:
    from training.register import connect, log_model, register, set_alias

    client = connect(settings_)
    logged = []
    for item in fitted:
        record = _record(item, at, seed, prepared)
        digest, folder = save_package(
            settings_.models_dir, item.model, item.signature, item.baseline, record, item.contract, item.reference
        )
        same = [role for role, seat in before.seats.items() if seat.digest == digest]
        if same:
            say(f"the new model is the one that plays {same[0]} already; {item.role} stays as it was")
            continue
        logged.append((item.role, digest, folder, log_model(item, record, digest)))
    # All are logged before any is registered: a failure in between leaves runs behind, but no version.
    seats = {
        role: Seat(register(client, model), digest, str(folder.relative_to(settings_.models_dir)))
        for role, digest, folder, model in logged
    }
    if seats:
        move_roles(settings_.models_dir, before.revision, seats)
    for role, seat in seats.items():
        set_alias(client, role, seat.version)
        say(f"{role} is now version {seat.version} ({seat.digest[:12]})")
    return seats


def _record(fitted: Fitted, at: datetime, seed: int, prepared: Any) -> dict[str, Any]:
    data = {"raw": prepared["raw"], "source": prepared["code"]}
    return {
        "as_of": at.isoformat(),
        "seed": seed,
        "estimator": fitted.estimator,
        "parameters": fitted.parameters,
        "rows": fitted.rows,
        "metrics": fitted.metrics,
        "data": data,
        "data_digest": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
        "feature_service": fitted.signature.service,
        "contract": fitted.signature.contract,
        "environment": environment(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--as-of", required=True, type=parse_instant, help="ISO date or instant (UTC)")
    parser.add_argument("--role", default="auto", choices=["auto", *ROLES])
    parser.add_argument("--seed", default=SEED, type=int)
    parser.add_argument("--estimator", default="", choices=["", *FITTERS], help="instead of each role's own")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    args = parser.parse_args(argv)
    begun = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begun:5.1f} s] {text}", flush=True)

    try:
        result = train(settings(), args.as_of, args.role, args.seed, say, args.raw, args.estimator)
    except UnderstudyError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**result, "seconds": round(time.perf_counter() - begun, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
