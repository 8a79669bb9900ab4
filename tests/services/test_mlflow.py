"""A tracking server on a real PostgreSQL: the setting ``tracking_uri`` is all a training needs to use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from deploy.demo import answers, free_port
from service.clock import parse_instant
from service.package import read_package
from service.roles import load_role, read_roles
from service.settings import ROOT
from tests.bundle import settings_in
from tests.services.postgres import Cluster
from tests.training.conftest import read_raw, write_raw
from tests.training.test_register import answers_elsewhere, artifacts

pytestmark = pytest.mark.services
AT = "2013-03-01"


@contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool], stop: signal.Signals) -> Iterator[None]:
    """A server, from its readiness to its end."""
    with log.open("w") as output:
        # A session of its own: mlflow starts workers, which must end with it.
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(stop)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@dataclass(frozen=True)
class Tracking:
    """A tracking server and its files."""

    url: str
    artifacts: Path


@pytest.fixture(scope="module")
def tracking(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    folder = tmp_path_factory.mktemp("tracking")
    port, kept = free_port(), folder / "artifacts"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", cluster.create("mlflow"), "--artifacts-destination", kept.as_uri(),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "log", lambda: answers(f"{url}/health"), signal.SIGTERM):
        yield Tracking(url, kept)


@pytest.fixture(scope="module")
def home(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training left its files that was told of the server by one setting."""
    folder = tmp_path_factory.mktemp("trained")
    flights, weather, airports = read_raw()
    raw = write_raw(folder / "raw", flights[flights["month"] <= 3], weather[weather["month"] <= 3], airports)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "UNDERSTUDY_"))} | {
        "UNDERSTUDY_STATE_DIR": str(folder / "state"),
        "UNDERSTUDY_MODELS_DIR": str(folder / "models"),
        "UNDERSTUDY_TRACKING_URI": tracking.url,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "training.train", "--as-of", AT, "--raw", str(raw)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["roles"] == {"primary": "1", "fallback": "2"}
    return folder


@pytest.fixture
def client(tracking: Tracking) -> Iterator[MlflowClient]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking.url)
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


def test_versions_aliases_and_tags_are_the_servers(home: Path, client: MlflowClient) -> None:
    seats = read_roles(home / "models").seats

    found = client.get_registered_model("understudy").aliases

    assert {role: str(version) for role, version in found.items()} == {"primary": "1", "fallback": "2"}
    for role, version in found.items():
        tags = client.get_model_version("understudy", version).tags
        assert (tags["role"], tags["package.digest"]) == (role, seats[role].digest)
        run = client.get_run(client.get_model_version("understudy", version).run_id)
        assert run.data.tags["feast.feature_service"] == tags["feast.feature_service"]
        assert {i.tags[0].value for i in run.inputs.dataset_inputs} == {"training", "evaluation"}
        assert parse_instant(run.data.params["as_of"]) == parse_instant(AT)
    assert not (home / "state/mlflow.db").exists()
    assert not (home / "state/mlruns").exists()


def test_artifacts_go_through_the_server(home: Path, tracking: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    seat = read_roles(home / "models").seats["primary"]
    run = client.get_run(client.get_model_version_by_alias("understudy", "primary").run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")

    folder = Path(client.download_artifacts(run.info.run_id, "package", str(tmp_path)))

    assert read_package(folder, seat.digest)
    assert "plots/calibration.png" in artifacts(client, run.info.run_id)
    assert any(tracking.artifacts.rglob("manifest.json"))


def test_a_model_loads_through_the_server_where_this_project_is_not(
    home: Path, tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    served = load_role(home / "models", "fallback")
    example = json.loads(
        Path(
            mlflow.artifacts.download_artifacts(
                "models:/understudy@fallback/input_example.json", dst_path=str(tmp_path)
            )
        ).read_text()
    )["data"]

    found = answers_elsewhere(tracking.url, "models:/understudy@fallback", example, tmp_path)

    words = served.signature.categories
    rows = [
        {
            name: None if value is None else words[name][int(value)] if name in words else value
            for name, value in zip(served.signature.features, row, strict=True)
        }
        for row in example
    ]
    np.testing.assert_allclose(found, served.score(rows), rtol=0, atol=1e-12)


def test_the_servers_pages_answer(tracking: Tracking) -> None:
    with urllib.request.urlopen(tracking.url, timeout=10) as answer:
        assert b"<title>MLflow</title>" in answer.read()


def test_a_server_that_is_gone_stops_a_training_before_anything_is_seated(tmp_path: Path) -> None:
    from training.register import connect

    before = mlflow.get_tracking_uri()
    settings = settings_in(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(mlflow.MlflowException, match="Connection refused"):
            connect(settings)
    mlflow.set_tracking_uri(before)

    assert not settings.models_dir.exists()
