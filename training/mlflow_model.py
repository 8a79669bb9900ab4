"""The code MLflow keeps beside a model of any format but LightGBM's: the service's own reading of it.

MLflow's flavour for scikit-learn trusts whatever types the stored model names itself, and is locked where pickles are
(mlflow 3.17); the others would answer in forms of their own. This way a registered model answers as the served one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from service.models import open_model


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers encoded rows with probabilities."""

    def load_context(self, context: Any) -> None:
        """Open the model file named in the configuration."""
        config = context.model_config
        content = Path(context.artifacts["model"]).read_bytes()
        self._score = open_model(config["format"], content, config["width"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """Return one probability per row; columns are the features in model order, encoded."""
        return self._score(model_input.to_numpy(dtype=np.float64))


mlflow.models.set_model(ServedModel())
