"""Trains as of one moment and scores everything after it, month by month."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from feature_repo import features as definitions
from service.clock import parse_instant
from service.definitions import contracts
from service.errors import UnderstudyError
from service.models import open_model
from service.roles import Role
from service.settings import Settings, settings
from training import estimator
from training.dataset import join_features
from training.estimators import FITTERS
from training.evaluate import evaluate
from training.fitting import encode, fit_role, known_rows
from training.prepare import prepare
from training.store import apply, open_store
from training.train import SEED

# What the reference problem must reach; see README.
LEAST_AUC: dict[Role, float] = {"primary": 0.74, "fallback": 0.62}


def backtest(settings_: Settings, as_of: str, estimator_name: str = "") -> dict[Role, pd.DataFrame]:
    """Return per role the labels and scores of every usable row judged at or after a moment."""
    at = parse_instant(as_of)
    prepare(settings_)
    store = open_store(settings_)
    apply(store, settings_)
    rows = pd.read_parquet(settings_.state_dir / "rows.parquet")
    known, later = known_rows(rows, at), rows[rows["usable"] & (rows["event_timestamp"] >= pd.Timestamp(at))]
    scored: dict[Role, pd.DataFrame] = {}
    for role in LEAST_AUC:
        contract = contracts(definitions)[estimator.FEATURE_SERVICE[role]]
        fitted = fit_role(role, join_features(store, known, contract), contract, at, SEED, estimator_name)
        score = open_model(fitted.signature.format, fitted.model, len(contract.features))
        frame = join_features(store, later, contract)
        matrix = encode(frame, fitted.signature.features, dict(fitted.signature.categories))
        scored[role] = frame[["event_timestamp", "label"]].assign(score=score(matrix))
    return scored


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object; exit code 1 when a role is below its limit."""
    parser = argparse.ArgumentParser(prog="make backtest", description=__doc__)
    parser.add_argument("--as-of", default="2013-10-01")
    parser.add_argument("--estimator", default="", choices=["", *FITTERS], help="instead of each role's own")
    args = parser.parse_args(argv)
    begun = time.perf_counter()
    try:
        scored = backtest(settings(), args.as_of, args.estimator)
    except UnderstudyError as error:
        print(f"backtest: {error}", file=sys.stderr)
        return 2
    result: dict[str, float] = {}
    print(f"{'role':10}{'month':10}{'rows':>9}{'rate':>8}{'AUC':>9}{'log loss':>10}{'Brier':>9}{'ECE':>8}")
    for role, frame in scored.items():
        months = frame["event_timestamp"].dt.strftime("%Y-%m")
        for month, part in [*frame.groupby(months), ("all", frame)]:
            m = evaluate(part["label"].to_numpy(dtype=float), np.asarray(part["score"], dtype=float))
            print(
                f"{role:10}{month:10}{m['rows']:9,.0f}{m['rate']:8.3f}{m['auc']:9.4f}"
                f"{m['log_loss']:10.4f}{m['brier']:9.4f}{m['ece']:8.4f}"
            )
        result[f"{role}_auc"] = round(m["auc"], 4)
    print(json.dumps({**result, "seconds": round(time.perf_counter() - begun, 1)}))
    return 0 if all(result[f"{role}_auc"] >= limit for role, limit in LEAST_AUC.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
