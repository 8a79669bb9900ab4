"""MLflow: one run per fitted model, one registered model per project, an alias per role.

SQLite and a folder below the state folder by default; the setting ``tracking_uri`` names a server instead. (Not
``MLFLOW_TRACKING_URI``: mlflow 3.17 sets that variable itself whenever it is pointed somewhere.)
"""

from __future__ import annotations

import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# On by default in mlflow 3.17: a model stored as a pickle would be loaded.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

import importlib.metadata
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient

from service.errors import UnderstudyError
from service.feature_store import project
from service.models import FORMATS, open_model
from service.package import Signature
from service.roles import Role
from service.settings import ROOT, Settings
from training.fitting import Fitted

# A first run tells of every database migration; nobody can act on it.
for name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(name).setLevel(logging.WARNING)
# What a logged model of a format needs where it is loaded.
_NEEDS = {
    "lightgbm": ("lightgbm", "numpy"),
    "xgboost": ("xgboost-cpu", "numpy"),
    "sklearn": ("scikit-learn", "skops", "numpy"),
    "onnx": ("onnxruntime", "numpy"),
}
# mlflow 3.17 with sqlalchemy 2.1, once a process.
warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")


def connect(settings: Settings) -> MlflowClient:
    """Point MLflow at the configured store and make the experiment on first use."""
    uri = settings.tracking_uri or f"sqlite:///{settings.state_dir.resolve() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    if mlflow.get_experiment_by_name(project()) is None:
        # Without a location artifacts would go below the current folder.
        local = None if settings.tracking_uri else (settings.state_dir.resolve() / "mlruns").as_uri()
        mlflow.create_experiment(project(), artifact_location=local)
    mlflow.set_experiment(project())
    return MlflowClient()


@dataclass(frozen=True)
class Logged:
    """A logged model that is not registered yet."""

    model_uri: str
    run_id: str


def log_model(fitted: Fitted, record: Mapping[str, Any], digest: str) -> Logged:
    """Log a run with everything that describes the model.

    Raises:
        UnderstudyError: when MLflow dropped the signature.
    """
    example = pd.DataFrame(fitted.example, columns=list(fitted.signature.features))
    with mlflow.start_run(run_name=f"{fitted.role} as of {record['as_of'][:10]}"):
        mlflow.set_tags(
            {
                "role": fitted.role,
                "feast.feature_service": fitted.signature.service,
                "contract.digest": fitted.signature.contract,
                "package.digest": digest,
                "data.digest": record["data_digest"],
            }
        )
        mlflow.log_params({"as_of": record["as_of"], "seed": record["seed"], "estimator": record["estimator"]})
        mlflow.log_params(record["parameters"])
        predictions = fitted.baseline["predictions"]
        mlflow.log_metrics({**fitted.metrics, **{f"pred_{k}": predictions[k] for k in ("mean", "std", "median")}})
        for name, value in (("baseline", fitted.baseline), ("record", record), ("signature", _plain(fitted.signature))):
            mlflow.log_dict(dict(value), f"{name}.json")
        scores = open_model(fitted.signature.format, fitted.model, example.shape[1])(fitted.example)
        info = _log(fitted, example, infer_signature(example, scores))
    # mlflow loses signatures quietly with some inputs (its issue 25593).
    if info.signature is None:
        msg = "MLflow logged the model without a signature; nothing was registered"
        raise UnderstudyError(msg)
    return Logged(info.model_uri, info.run_id)


def _log(fitted: Fitted, example: pd.DataFrame, signature: Any) -> Any:
    form = fitted.signature.format
    common = {
        "name": "model",
        "signature": signature,
        "input_example": example,
        "pip_requirements": [f"{p}=={importlib.metadata.version(p)}" for p in _NEEDS[form]],
    }
    if form == "lightgbm":
        import lightgbm

        return mlflow.lightgbm.log_model(lightgbm.Booster(model_str=fitted.model.decode()), **common)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FORMATS[form].file
        path.write_bytes(fitted.model)
        return mlflow.pyfunc.log_model(
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={"model": str(path)},
            model_config={"format": form, "width": example.shape[1]},
            code_paths=[str(ROOT / "service")],
            **common,
        )


def register(client: MlflowClient, logged: Logged) -> str:
    """Register a logged model under the project's name and return its new version."""
    if not client.search_registered_models(f"name = '{project()}'"):
        client.create_registered_model(project())
    return str(client.create_model_version(project(), logged.model_uri, run_id=logged.run_id).version)


def set_alias(client: MlflowClient, role: Role, version: str) -> None:
    """Point a role's alias at a version."""
    client.set_registered_model_alias(project(), role, version)


def _plain(signature: Signature) -> dict[str, Any]:
    return dict(json.loads(json.dumps(signature.__dict__)))
