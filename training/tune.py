"""Searches for better parameters on time-ordered folds and prints them; it changes nothing."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import pandas as pd
from sklearn.metrics import roc_auc_score

from feature_repo import features as definitions
from service.clock import parse_instant
from service.contract import Contract
from service.definitions import contracts
from service.errors import UnderstudyError
from service.models import Matrix
from service.roles import ROLES, Role
from service.settings import Settings, settings
from training import estimator
from training.dataset import join_features
from training.estimators import FITTERS
from training.fitting import HOLDOUT, LEAST_ROWS, encode, known_rows, vocabularies
from training.prepare import prepare
from training.store import apply, open_store
from training.train import SEED

FOLDS = 3


def _boosting(trial: optuna.Trial) -> dict[str, Any]:
    return {"rounds": trial.suggest_int("rounds", 100, 600, step=50), **_rate(trial)}


def _rate(trial: optuna.Trial) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True)}


def _lightgbm(trial: optuna.Trial) -> dict[str, Any]:
    return {
        **_boosting(trial),
        "num_leaves": trial.suggest_int("num_leaves", 8, 128, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 1000, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 1.0),
    }


def _xgboost(trial: optuna.Trial) -> dict[str, Any]:
    return {
        **_boosting(trial),
        "max_depth": trial.suggest_int("max_depth", 3, 9),
        "min_child_weight": trial.suggest_float("min_child_weight", 1, 200, log=True),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.4, 1.0),
    }


def _hist_gradient(trial: optuna.Trial) -> dict[str, Any]:
    return {
        **_rate(trial),
        "max_iter": trial.suggest_int("max_iter", 100, 600, step=50),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 8, 128, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 20, 1000, log=True),
    }


def _logistic(trial: optuna.Trial) -> dict[str, Any]:
    return {"C": trial.suggest_float("C", 1e-4, 100, log=True)}


# What is searched; every other parameter stays what estimator.py says.
SPACES: Mapping[str, Callable[[optuna.Trial], dict[str, Any]]] = {
    "lightgbm": _lightgbm,
    "xgboost": _xgboost,
    "hist_gradient": _hist_gradient,
    "logistic": _logistic,
    "logistic_onnx": _logistic,
}


@dataclass(frozen=True)
class Fold:
    """What was known before a moment to fit on, and the weeks after it to score; both encoded."""

    x: Matrix
    y: Matrix
    categorical: tuple[int, ...]
    later_x: Matrix
    later_y: Matrix


def folds(frame: pd.DataFrame, contract: Contract, at: datetime, count: int = FOLDS) -> list[Fold]:
    """The last ``count`` stretches of 28 days before a moment, each after everything it is fitted on.

    Stretches with too little before them are left out; the newest is there whenever a model can be trained.
    """
    made = []
    for number in range(count):
        start, end = pd.Timestamp(at - (number + 1) * HOLDOUT), pd.Timestamp(at - number * HOLDOUT)
        before = frame[frame["label_known_at"] < start]
        after = frame[(frame["event_timestamp"] >= start) & (frame["event_timestamp"] < end)]
        if len(before) < LEAST_ROWS or before["label"].nunique() < 2 or after["label"].nunique() < 2:
            continue
        words = vocabularies(before, contract)
        made.append(
            Fold(
                encode(before, contract.features, words),
                before["label"].to_numpy(dtype=float),
                tuple(contract.features.index(name) for name in words),
                encode(after, contract.features, words),
                after["label"].to_numpy(dtype=float),
            )
        )
    return made


def mean_auc(parts: Sequence[Fold], name: str, parameters: Mapping[str, Any], seed: int) -> float:
    """Mean AUC over folds of an estimator with these parameters."""
    scores = [FITTERS[name](parameters, p.x, p.y, p.categorical, seed).predict(p.later_x) for p in parts]
    return sum(float(roc_auc_score(p.later_y, s)) for p, s in zip(parts, scores, strict=True)) / len(parts)


def search(
    parts: Sequence[Fold], name: str, current: Mapping[str, Any], trials: int, seconds: float | None, seed: int
) -> dict[str, Any]:
    """Search and return what was found beside what is.

    The same folds, trials and seed give the same answer unless the time runs out first.

    Args:
        current: the parameters now, kept where nothing else is searched.
        seconds: no trial begins later than this.
    """
    # Its own log would break the progress bar; what it finds is printed at the end.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

    def objective(trial: optuna.Trial) -> float:
        return mean_auc(parts, name, {**current, **SPACES[name](trial)}, seed)

    now = mean_auc(parts, name, current, seed)
    study.optimize(objective, n_trials=trials, timeout=seconds, show_progress_bar=True)
    # The time may have run out before the first trial.
    found, values = (study.best_value, study.best_params) if study.trials else (now, {})
    return {
        "estimator": name,
        "folds": len(parts),
        "trials": len(study.trials),
        "current_auc": round(now, 4),
        "best_auc": round(found, 4),
        "better": round(found, 4) > round(now, 4),
        "best": {**current, **values},
    }


def tune(
    settings_: Settings, at: datetime, role: Role, name: str, trials: int, seconds: float | None, seed: int
) -> dict[str, Any]:
    """Prepare the folds of a role as of a moment and search.

    Raises:
        UnderstudyError: when the data do not allow it.
    """
    prepare(settings_)
    store = open_store(settings_)
    apply(store, settings_)
    rows = known_rows(pd.read_parquet(settings_.state_dir / "rows.parquet"), at)
    contract = contracts(definitions)[estimator.FEATURE_SERVICE[role]]
    parts = folds(join_features(store, rows, contract), contract, at)
    name = name or estimator.ESTIMATOR[role]
    return search(parts, name, estimator.parameters(role, name), trials, seconds, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make tune", description=__doc__)
    parser.add_argument("--as-of", required=True, type=parse_instant, help="ISO date or instant (UTC)")
    parser.add_argument("--role", default="primary", choices=ROLES)
    parser.add_argument("--estimator", default="", choices=["", *FITTERS], help="instead of the role's own")
    parser.add_argument("--trials", default=30, type=int)
    parser.add_argument("--seconds", type=float, help="begin no trial later than this; default: no limit")
    parser.add_argument("--seed", default=SEED, type=int)
    args = parser.parse_args(argv)
    begun = time.perf_counter()
    try:
        found = tune(settings(), args.as_of, args.role, args.estimator, args.trials, args.seconds, args.seed)
    except UnderstudyError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    advice = "write them into training/estimator.py" if found["better"] else "the current ones stay"
    print(f"{found['estimator']}: AUC {found['current_auc']:.4f} now, {found['best_auc']:.4f} at best; {advice}")
    for parameter, value in found["best"].items():
        print(f"    {parameter} = {value!r}")
    print(json.dumps({**found, "seconds": round(time.perf_counter() - begun, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
