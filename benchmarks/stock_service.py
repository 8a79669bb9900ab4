"""What BentoML's documentation begins with: one model, one synchronous endpoint, the default configuration.

The caller sends the model's inputs as numbers, so there is no lookup, no check, no log. Measured by ``serving.py``.
"""

from __future__ import annotations

import os

import bentoml
import lightgbm
import numpy as np


@bentoml.service(name="stock")
class Stock:
    """Serves the model file named by ``STOCK_MODEL``."""

    def __init__(self) -> None:
        self.model = lightgbm.Booster(model_file=os.environ["STOCK_MODEL"])

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml carries no types
    def predict(self, features: list[float]) -> float:
        """Score one row. One thread, as in every service measured: with two, theirs wait for each other by spinning."""
        return float(self.model.predict(np.array([features]), num_threads=1)[0])
