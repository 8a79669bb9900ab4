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

import hashlib
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
import numpy as np
import pandas as pd
from feast import FeatureService
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec

from feature_repo import features as definitions
from service.errors import UnderstudyError
from service.feature_store import project
from service.models import FORMATS
from service.package import save_package
from service.roles import Role
from service.settings import ROOT, Settings
from training.fitting import Fitted
from training.pictures import pictures

# A first run tells of every database migration; nobody can act on it.
for name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(name).setLevel(logging.WARNING)
# What a logged model of a format needs where it is loaded: the versions it was fitted with. What those need in turn is
# left open: MLFLOW_LOCK_MODEL_DEPENDENCIES would ask an index in the middle of a training (mlflow 3.17 runs uv for it),
# and name versions nothing here ran with; record.json names the lock.
_NEEDS = {
    "lightgbm": ("lightgbm", "numpy"),
    "xgboost": ("xgboost-cpu", "numpy"),
    "sklearn": ("scikit-learn", "skops", "numpy"),
    "onnx": ("onnxruntime", "numpy"),
}
# The columns of the joined rows.
_TYPES = {"float": "double", "int": "long", "str": "string", "bool": "boolean", "timestamp": "datetime"}
_REGISTRY = "One version per model that training proposed; an alias per role says which plays it."
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
    """A logged model that is not registered yet, and what its version will say."""

    model_uri: str
    run_id: str
    model_id: str
    description: str
    tags: dict[str, str]


class _Rows(MetaDataset):  # type: ignore[misc]
    """Rows a training saw, known by digest, columns and number: MLflow's own classes would want the rows."""

    def __init__(self, fitted: Fitted, record: Mapping[str, Any], context: str, rows: int) -> None:
        told = {
            "context": context,
            "as_of": record["as_of"],
            "data.digest": record["data_digest"],
            "contract.digest": fitted.signature.contract,
            "feast.feature_service": fitted.signature.service,
        }
        columns = [ColSpec(_TYPES[field["dtype"]], field["name"]) for field in fitted.contract.get("fields", ())]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        name = f"{project()}_{fitted.signature.service}_{context}"
        self._rows = rows
        schema = Schema([*columns, ColSpec("double", "label")])
        # mlflow 3.17 takes 36 characters.
        super().__init__(CodeDatasetSource(told), name, digest[:36], schema)

    def to_dict(self) -> dict[str, str]:
        return {**super().to_dict(), "profile": json.dumps({"num_rows": self._rows})}


def log_model(fitted: Fitted, record: Mapping[str, Any], digest: str, docs: Path | None = None) -> Logged:
    """Log a run with everything that describes the model, its whole package among it.

    Args:
        digest: of the package.
        docs: the Data Docs of the rows it was fitted on; logged when they exist.

    Raises:
        UnderstudyError: when MLflow dropped the signature.
    """
    example = pd.DataFrame(fitted.example, columns=list(fitted.signature.features))
    description = _describe(fitted, record, digest)
    tags = {
        "role": fitted.role,
        "as_of": record["as_of"],
        "contract.digest": fitted.signature.contract,
        "package.digest": digest,
        "data.digest": record["data_digest"],
        "feast.project": project(),
        "feast.feature_service": fitted.signature.service,
    }
    seen = _Rows(fitted, record, "training", fitted.rows)
    judged = _Rows(fitted, record, "evaluation", int(fitted.metrics.get("rows", 0)))
    predictions = fitted.baseline["predictions"]
    metrics = {**fitted.metrics, **{f"pred_{k}": predictions[k] for k in ("mean", "std", "median")}}
    with mlflow.start_run(run_name=f"{fitted.role} as of {record['as_of'][:10]}", description=description):
        mlflow.set_tags({**tags, **_retrieval(fitted)})
        mlflow.log_params({"as_of": record["as_of"], "seed": record["seed"], "estimator": record["estimator"]})
        mlflow.log_params(record["parameters"])
        mlflow.log_input(seen, context="training")
        mlflow.log_input(judged, context="evaluation")
        mlflow.log_dict(_references(fitted.signature.service), "feast_features.json")
        for name, figure in pictures(fitted.baseline).items():
            mlflow.log_figure(figure, f"plots/{name}.png")
        if docs is not None and docs.is_file():
            mlflow.log_artifact(str(docs), "validation")
        with tempfile.TemporaryDirectory() as folder:
            _, package = save_package(
                Path(folder), fitted.model, fitted.signature, fitted.baseline, record, fitted.contract,
                fitted.reference,
            )  # fmt: skip
            mlflow.log_artifacts(str(package), "package")
        info = _log(fitted, example, _signature(fitted))
        # After the model, so that its own page shows them too.
        mlflow.log_metrics(metrics, model_id=info.model_id, dataset=judged)
    # mlflow loses signatures quietly with some inputs (its issue 25593).
    if info.signature is None:
        msg = "MLflow logged the model without a signature; nothing was registered"
        raise UnderstudyError(msg)
    return Logged(info.model_uri, info.run_id, info.model_id, description, tags)


def _describe(fitted: Fitted, record: Mapping[str, Any], digest: str) -> str:
    """Markdown: what a reader of the registry asks first."""
    auc = fitted.metrics.get("auc")
    lines = {
        "role it was fitted for": fitted.role,
        "as of": record["as_of"],
        "estimator": fitted.estimator,
        "rows": f"{fitted.rows:,}",
        "AUC in the weeks before, not fitted on them": "unknown" if auc is None else f"{auc:.4f}",
        "feature service": fitted.signature.service,
        "data digest": f"`{record['data_digest'][:16]}`",
        "package digest": f"`{digest[:16]}`",
    }
    listed = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    return f"{listed}\n\nTakes encoded rows; vocabularies: `package/signature.json` of the run.\n"


def _references(service: str) -> list[str]:
    (found,) = (v for v in vars(definitions).values() if isinstance(v, FeatureService) and v.name == service)
    return [f"{p.name_to_use()}:{feature.name}" for p in found.feature_view_projections for feature in p.features]


def _retrieval(fitted: Fitted) -> dict[str, str]:
    """The tags Feast's own MLflow integration sets where features are retrieved (feast 0.67)."""
    references = _references(fitted.signature.service)
    return {
        "feast.retrieval_type": "historical",
        "feast.feature_views": ",".join(sorted({reference.partition(":")[0] for reference in references})),
        "feast.feature_refs": ",".join(references),
        "feast.feature_count": str(len(references)),
        "feast.entity_count": str(fitted.rows),
    }


def _signature(fitted: Fitted) -> ModelSignature:
    """Every feature is a number and required; inferred from an example, one without a value there would not be."""
    inputs = Schema([ColSpec("double", name) for name in fitted.signature.features])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float64), (-1,))]))


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
        client.create_registered_model(project(), description=_REGISTRY)
    told = {"run_id": logged.run_id, "tags": logged.tags, "description": logged.description}
    # A server refuses an address that the model's id does not vouch for (mlflow 3.17).
    made = client.create_model_version(project(), logged.model_uri, model_id=logged.model_id, **told)
    return str(made.version)


def set_alias(client: MlflowClient, role: Role, version: str) -> None:
    """Point a role's alias at a version."""
    client.set_registered_model_alias(project(), role, version)
