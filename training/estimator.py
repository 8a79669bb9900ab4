"""How a model is fitted. One of the three files to replace for another problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from service.roles import Role

NAME = "lightgbm"

# Which Feast feature service a role's model is trained on. The fallback's needs no feature store.
FEATURE_SERVICE: Mapping[Role, str] = {"primary": "primary", "shadow": "primary", "fallback": "request_only"}

_COMMON: dict[str, Any] = {
    "objective": "binary",
    "deterministic": True,
    "force_row_wise": True,
    # The order of summation, and with it the last bits of the model, depends on the number of threads. And one is
    # fastest where a core may be busy: two threads on two cores with one busy took 52 s for what one did in 8
    # (lightgbm 4.7 with GNU OpenMP, whose threads wait by spinning).
    "num_threads": 1,
    "verbose": -1,
}
_FULL = {"rounds": 300, "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 200}
_FULL |= {"bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.7}
# Few shallow trees on few inputs: quick, smooth, and hard to upset.
_SMALL = {"rounds": 150, "learning_rate": 0.1, "num_leaves": 8, "min_data_in_leaf": 500}

PARAMETERS: Mapping[Role, Mapping[str, Any]] = {
    "primary": {**_COMMON, **_FULL},
    "shadow": {**_COMMON, **_FULL},
    "fallback": {**_COMMON, **_SMALL},
}


def fit(
    role: Role, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], categorical: list[int], seed: int
) -> lightgbm.Booster:
    """Fit one model; the same arguments give the same model, bit for bit.

    Args:
        x: inputs (rows x features), categories as codes, missing as NaN.
        y: labels, 0 or 1.
        categorical: positions of the categorical features.
    """
    parameters = dict(PARAMETERS[role])
    rounds = int(parameters.pop("rounds"))
    data = lightgbm.Dataset(x, y, categorical_feature=categorical, params={"verbose": -1})
    return lightgbm.train({**parameters, "seed": seed}, data, num_boost_round=rounds)
