"""What MLflow is told: datasets, tags, pictures, the whole package, versions that explain themselves, plain loading."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from feast.mlflow_integration.model_resolver import FeastMlflowModelResolver
from mlflow.tracking import MlflowClient

from service.clock import parse_instant
from service.models import open_model
from service.package import read_package
from service.roles import read_roles
from service.settings import Settings
from tests.bundle import SAMPLE, TOYS, settings_in
from tests.training.test_estimators import CATEGORICAL, RECORD, X, Y, signature
from training import register
from training.estimators import FITTERS
from training.fitting import Fitted
from training.store import open_store
from training.train import train

AT = parse_instant("2013-03-01")
PREDICTIONS = {"mean": 0.5, "std": 0.1, "median": 0.5}
# What anybody would write, without this project and without its settings.
PLAIN = """
import json, sys, mlflow, numpy, pandas
assert not any(name.partition(".")[0] in {"service", "training", "feature_repo"} for name in sys.modules)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = pandas.DataFrame(json.loads(sys.argv[3]), columns=model.metadata.get_input_schema().input_names(), dtype=float)
print(json.dumps(numpy.asarray(model.predict(rows)).tolist()))
"""


def fitted_as(name: str, baseline: dict[str, Any] | None = None) -> Fitted:
    """A toy of an estimator, as a training hands it to the registry."""
    trained = FITTERS[name](TOYS[name], X, Y, CATEGORICAL, 7)
    described = baseline or {"predictions": PREDICTIONS}
    return Fitted(
        "primary", name, TOYS[name], trained.content, signature(trained.format), described, {"auc": 0.5, "rows": 40.0},
        {"fields": [{"name": "f0", "dtype": "float"}]}, SAMPLE, len(X), X[:3],
    )  # fmt: skip


def answers_elsewhere(tracking: str, uri: str, rows: list[list[float | None]], cwd: Path) -> list[float]:
    """Predictions of a registered model in a process that cannot import this project."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MLFLOW_", "UNDERSTUDY_"))}
    command = [sys.executable, "-I", "-c", PLAIN, tracking, uri, json.dumps(rows)]
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTERS))
def test_a_version_of_every_estimator_loads_plainly_where_this_project_is_not(name: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client = register.connect(settings)
    fitted = fitted_as(name)
    version = register.register(client, register.log_model(fitted, RECORD, "digest"))
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in X[:20]]

    found = answers_elsewhere(mlflow.get_tracking_uri(), f"models:/understudy/{version}", rows, tmp_path)

    expected = open_model(fitted.signature.format, fitted.model, X.shape[1])(X[:20])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_input_schema_does_not_depend_on_the_example(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    register.connect(settings)
    assert np.isnan(X[:3, 4]).all()

    logged = register.log_model(fitted_as("lightgbm"), RECORD, "digest")

    schema = mlflow.models.get_model_info(logged.model_uri).signature.inputs
    assert [(c.name, c.required) for c in schema.inputs] == [(f"f{j}", True) for j in range(X.shape[1])]


def test_a_baseline_without_curves_is_logged_without_their_pictures(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client = register.connect(settings)
    page = tmp_path / "index.html"

    page.write_text("<p>met</p>")
    logged = register.log_model(fitted_as("lightgbm"), RECORD, "digest", page)
    missing = register.log_model(fitted_as("lightgbm"), RECORD, "digest", tmp_path / "absent.html")

    assert artifacts(client, logged.run_id) >= {"validation/index.html", "package/manifest.json"}
    assert not any(name.startswith(("plots/", "validation/")) for name in artifacts(client, missing.run_id))


def artifacts(client: MlflowClient, run_id: str, path: str = "") -> set[str]:
    """Every file a run logged."""
    found = client.list_artifacts(run_id, path)
    files = {entry.path for entry in found if not entry.is_dir}
    return files.union(*(artifacts(client, run_id, entry.path) for entry in found if entry.is_dir))


@pytest.fixture(scope="module")
def trained(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A training on two real months."""
    settings = settings_in(tmp_path_factory.mktemp("registered"))
    train(settings, AT, "auto", 7, lambda _: None, raw_folder)
    return settings


@pytest.mark.slow
def test_a_run_names_the_rows_it_saw_and_the_rows_it_was_judged_on(trained: Settings) -> None:
    client = register.connect(trained)
    runs = [client.get_run(client.get_model_version("understudy", v).run_id) for v in ("1", "2")]

    inputs = [{i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs} for run in runs]

    for run, datasets in zip(runs, inputs, strict=True):
        assert set(datasets) == {"training", "evaluation"}
        rows = {context: json.loads(found.profile)["num_rows"] for context, found in datasets.items()}
        assert rows["evaluation"] == run.data.metrics["rows"] < rows["training"]
        columns = [c["name"] for c in json.loads(datasets["training"].schema)["mlflow_colspec"]]
        assert columns[-1] == "label"
        assert json.loads(datasets["training"].source)["tags"]["data.digest"] == run.data.tags["data.digest"]
    assert len({found.digest for datasets in inputs for found in datasets.values()}) == 4


@pytest.mark.slow
def test_the_package_in_the_registry_is_the_one_that_is_served(trained: Settings, tmp_path: Path) -> None:
    client = register.connect(trained)
    for role, seat in read_roles(trained.models_dir).seats.items():
        run_id = client.get_model_version_by_alias("understudy", role).run_id
        folder = Path(client.download_artifacts(run_id, "package", str(tmp_path)))

        assert read_package(folder, seat.digest) == read_package(trained.models_dir / seat.package, seat.digest)
        names = {"plots/calibration.png", "plots/scores.png", "plots/importance.png", "feast_features.json"}
        assert names <= artifacts(client, run_id)
        picture = Path(client.download_artifacts(run_id, "plots/importance.png", str(tmp_path)))
        assert picture.stat().st_size < 100_000


@pytest.mark.slow
def test_a_version_explains_itself(trained: Settings) -> None:
    client = register.connect(trained)
    version = client.get_model_version("understudy", "1")
    run = client.get_run(version.run_id)

    said = version.description

    for expected in (
        "2013-03-01T00:00:00+00:00", f"{run.data.metrics['auc']:.4f}", run.data.tags["data.digest"][:16],
        f"{int(run.data.tags['feast.entity_count']):,}",
    ):  # fmt: skip
        assert expected in said
    assert {k: v for k, v in run.data.tags.items() if k in version.tags} == version.tags
    assert version.tags["role"] == "primary"
    assert run.data.tags["mlflow.note.content"] == said
    assert client.get_registered_model("understudy").description
    (output,) = run.outputs.model_outputs
    model = mlflow.get_logged_model(output.model_id)
    assert version.source == model.model_uri
    assert {m.key for m in model.metrics} >= {"auc", "brier"}
    assert {m.dataset_name for m in model.metrics} == {"understudy_primary_evaluation"}


@pytest.mark.slow
def test_feast_finds_the_feature_service_of_a_version_by_itself(trained: Settings) -> None:
    client = register.connect(trained)
    resolver = FeastMlflowModelResolver(open_store(trained), mlflow, client)

    # It also compares feast_features.json with the registry.
    assert resolver.resolve("models:/understudy/primary") == "primary"
    assert resolver.resolve("models:/understudy/fallback") == "request_only"


def test_pictures_are_the_same_for_the_same_baseline() -> None:
    from training.pictures import pictures

    baseline = {
        "predictions": {
            **PREDICTIONS, "edges": [0.0, 0.5, 1.0], "counts": [30, 10],
            "calibration": [{"score": 0.2, "rate": 0.1, "rows": 30.0}, {"score": 0.7, "rate": 0.8, "rows": 10.0}],
        },
        "importance": {
            "method": "tree_shap", "unit": "log-odds", "rows": 40,
            "ranking": [{"feature": f"f{j}", "mean_abs": 1 / (1 + j), "direction": 1} for j in range(30)],
        },
    }  # fmt: skip

    first, second = pictures(baseline), pictures(baseline)

    assert list(first) == ["calibration", "scores", "importance"]
    for name, figure in first.items():
        drawn = [io.BytesIO(), io.BytesIO()]
        figure.savefig(drawn[0])
        second[name].savefig(drawn[1])
        assert drawn[0].getvalue() == drawn[1].getvalue()
    assert [text.get_text() for text in first["importance"].axes[0].get_yticklabels()] == [f"f{j}" for j in range(20)]
