"""How a model is fitted. One of the three files to replace for another problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.models import Matrix
from service.roles import Role
from training.estimators import FITTERS, Trained

# Which Feast feature service a role's model is trained on. The fallback's needs no feature store.
FEATURE_SERVICE: Mapping[Role, str] = {"primary": "primary", "shadow": "primary", "fallback": "request_only"}

# Which estimator a role's model is; `make train ESTIMATOR=` takes another one for one training.
ESTIMATOR: Mapping[Role, str] = {"primary": "lightgbm", "shadow": "lightgbm", "fallback": "lightgbm"}

_FULL: Mapping[str, Mapping[str, Any]] = {
    "lightgbm": {
        "objective": "binary", "rounds": 300, "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 200,
        "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.7,
    },
    "xgboost": {
        "objective": "binary:logistic", "rounds": 300, "learning_rate": 0.05, "max_depth": 7, "min_child_weight": 30,
        "subsample": 0.8, "colsample_bytree": 0.7,
    },
    "hist_gradient": {"max_iter": 300, "learning_rate": 0.05, "max_leaf_nodes": 63, "min_samples_leaf": 200},
    "logistic": {"C": 0.1, "max_iter": 500},
    "logistic_onnx": {"C": 0.1, "max_iter": 500},
}  # fmt: skip
# Few shallow trees on few inputs: quick, smooth, and hard to upset.
_SMALL: Mapping[str, Mapping[str, Any]] = {
    **_FULL,
    "lightgbm": {
        "objective": "binary", "rounds": 150, "learning_rate": 0.1, "num_leaves": 8, "min_data_in_leaf": 500,
    },
    "xgboost": {
        "objective": "binary:logistic", "rounds": 150, "learning_rate": 0.1, "max_depth": 3, "min_child_weight": 70,
    },
    "hist_gradient": {"max_iter": 150, "learning_rate": 0.1, "max_leaf_nodes": 8, "min_samples_leaf": 500},
}  # fmt: skip


def parameters(role: Role, name: str) -> Mapping[str, Any]:
    """The parameters with which an estimator is fitted for a role."""
    return (_SMALL if role == "fallback" else _FULL)[name]


def fit(role: Role, x: Matrix, y: Matrix, categorical: Sequence[int], seed: int, name: str = "") -> Trained:
    """Fit one model; the same arguments give the same model, bit for bit.

    Args:
        x: inputs (rows x features), categories as codes, missing as NaN.
        y: labels, 0 or 1.
        categorical: positions of the categorical features.
        name: another estimator than the role's own.
    """
    name = name or ESTIMATOR[role]
    return FITTERS[name](parameters(role, name), x, y, categorical, seed)
