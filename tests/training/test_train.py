"""A training at a moment: what it seats, what it logs, what it leaves alone when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from service.clock import parse_instant
from service.errors import DataError
from service.package import Encoder
from service.roles import load_role, read_roles
from service.settings import ROOT, Settings
from tests.bundle import settings_in
from tests.training.conftest import read_raw, write_raw
from training import register as register_module
from training.aliases import RegistryFailed
from training.fitting import encode
from training.prepare import prepare
from training.train import train

pytestmark = pytest.mark.slow
AT = parse_instant("2013-03-01")


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def trained(
    raw_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, dict[str, Any], dict[str, Any]]:
    """A first training and a later one."""
    settings = settings_in(tmp_path_factory.mktemp("trained"))
    first = train(settings, AT, "auto", 7, silent, raw_folder)
    second = train(settings, parse_instant("2013-03-20"), "auto", 7, silent, raw_folder)
    return settings, first, second


def test_the_first_training_seats_primary_and_fallback_and_later_ones_propose_a_shadow(
    trained: tuple[Settings, dict[str, Any], dict[str, Any]],
) -> None:
    settings, first, second = trained

    assert first["roles"] == {"primary": "1", "fallback": "2"}
    assert second["roles"] == {"shadow": "3"}
    assert {role: seat.version for role, seat in read_roles(settings.models_dir).seats.items()} == {
        "primary": "1", "fallback": "2", "shadow": "3",
    }  # fmt: skip


def test_a_model_for_a_slot_is_fitted_and_judged_as_a_shadow_and_told_when_no_service_runs_it(
    raw_folder: Path, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path, shadows=2)
    said: list[str] = []

    made = train(settings, parse_instant("2013-03-20"), "shadow_3", 7, said.append, raw_folder)

    assert made["roles"] == {"shadow_3": "1"}
    assert load_role(settings.models_dir, "shadow_3").signature.service == "primary"
    assert str(register_module.connect(settings).get_registered_model("understudy").aliases["shadow_3"]) == "1"
    (idle,) = (line for line in said if "is seated as" in line)
    assert "this service runs shadows=2; set UNDERSTUDY_SHADOWS=3" in idle


def test_aliases_in_the_registry_say_what_roles_json_says(
    trained: tuple[Settings, dict[str, Any], dict[str, Any]],
) -> None:
    settings, _, _ = trained
    mlflow.set_tracking_uri(f"sqlite:///{settings.state_dir / 'mlflow.db'}")
    client = mlflow.MlflowClient()

    found = client.get_registered_model("understudy").aliases

    assert {role: str(version) for role, version in found.items()} == {"primary": "1", "fallback": "2", "shadow": "3"}
    run = client.get_run(client.get_model_version("understudy", "1").run_id)
    assert run.data.tags["feast.feature_service"] == "primary"
    assert run.data.tags["package.digest"] == read_roles(settings.models_dir).seats["primary"].digest
    assert {"auc", "log_loss", "brier", "pred_mean"} <= set(run.data.metrics)


def test_a_registered_model_loads_plainly_and_scores_as_the_packaged_one(
    trained: tuple[Settings, dict[str, Any], dict[str, Any]],
) -> None:
    settings, _, _ = trained
    mlflow.set_tracking_uri(f"sqlite:///{settings.state_dir / 'mlflow.db'}")
    ours = load_role(settings.models_dir, "primary")
    row = {"origin": "EWR", "carrier": "UA", "dep_hour": 8, "temp": 40.0, "plane_idle_h": None}
    encoded = Encoder(ours.signature.features, ours.signature.categories).matrix([row])

    theirs = mlflow.pyfunc.load_model("models:/understudy@primary")

    frame = pd.DataFrame(encoded, columns=list(ours.signature.features))
    assert theirs.metadata.signature is not None
    assert theirs.predict(frame)[0] == pytest.approx(ours.score([row])[0], abs=1e-12)


def test_no_artifact_is_a_pickle(trained: tuple[Settings, dict[str, Any], dict[str, Any]]) -> None:
    settings, _, _ = trained

    suspicious = [p for root in (settings.state_dir / "mlruns", settings.models_dir) for p in root.rglob("*.p*kl*")]

    assert suspicious == []
    for path in (settings.state_dir / "mlruns").rglob("*"):
        assert not path.is_file() or path.read_bytes()[:1] != b"\x80"


def test_the_record_says_where_the_model_came_from(trained: tuple[Settings, dict[str, Any], dict[str, Any]]) -> None:
    settings, _, _ = trained
    seat = read_roles(settings.models_dir).seats["primary"]

    record = json.loads((settings.models_dir / seat.package / "record.json").read_text())

    assert record["as_of"] == "2013-03-01T00:00:00+00:00"
    assert set(record["data"]["raw"]) == {"flights", "weather", "airports"}
    assert record["environment"]["packages"]["lightgbm"]
    assert len(record["environment"]["lock"]) == 64
    assert set(record["data"]["tables"]) == {"rows", *(path.stem for path in settings.features_dir.glob("*.parquet"))}
    assert "gate_passed_over" not in record


def test_training_again_gives_the_same_digest_in_another_process(
    trained: tuple[Settings, dict[str, Any], dict[str, Any]], raw_folder: Path, tmp_path: Path
) -> None:
    settings, _, _ = trained
    env = {
        **os.environ,
        "UNDERSTUDY_STATE_DIR": str(tmp_path / "state"),
        "UNDERSTUDY_MODELS_DIR": str(tmp_path / "models"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "training.train", "--as-of", "2013-03-01", "--raw", str(raw_folder)]

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1])["roles"] == {"primary": "1", "fallback": "2"}
    again, before = read_roles(tmp_path / "models").seats, read_roles(settings.models_dir).seats
    assert (again["primary"].digest, again["fallback"].digest) == (before["primary"].digest, before["fallback"].digest)


def test_the_primarys_own_model_is_not_proposed_as_its_shadow(
    trained: tuple[Settings, dict[str, Any], dict[str, Any]], raw_folder: Path
) -> None:
    settings, _, _ = trained
    before = read_roles(settings.models_dir)
    said: list[str] = []

    again = train(settings, AT, "auto", 7, said.append, raw_folder)

    assert again["roles"] == {}
    assert any("plays primary already" in text for text in said)
    assert read_roles(settings.models_dir) == before


def test_a_damaged_table_stops_the_training_and_changes_nothing(
    raw_folder: Path, tmp_path: Path, trained: tuple[Settings, dict[str, Any], dict[str, Any]]
) -> None:
    settings, _, _ = trained
    flights, weather, airports = read_raw(raw_folder)
    broken = write_raw(tmp_path / "broken", flights.assign(carrier=None), weather, airports)
    before = {p: p.stat().st_mtime_ns for p in settings.state_dir.rglob("*.parquet")}
    env = {
        **os.environ,
        "UNDERSTUDY_STATE_DIR": str(settings.state_dir),
        "UNDERSTUDY_MODELS_DIR": str(settings.models_dir),
        "PYTHONPATH": str(ROOT),
    }

    done = subprocess.run(
        [sys.executable, "-m", "training.train", "--as-of", "2013-03-01", "--raw", str(broken)],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "flights.carrier" in done.stderr
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in settings.state_dir.rglob("*.parquet")} == before
    assert read_roles(settings.models_dir).revision == 2


def test_a_failure_while_logging_registers_and_seats_nothing(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    log, seen = register_module.log_model, []

    def fail_second(fitted: Any, *rest: Any) -> Any:
        seen.append(fitted.role)
        if len(seen) == 2:
            raise ConnectionError("the tracking server is gone")
        return log(fitted, *rest)

    monkeypatch.setattr(register_module, "log_model", fail_second)
    with pytest.raises(RegistryFailed, match="the tracking server is gone"):
        train(settings, AT, "auto", 7, silent, raw_folder)

    client = register_module.connect(settings)
    assert seen == ["primary", "fallback"]
    assert list(client.search_registered_models()) == []
    assert read_roles(settings.models_dir).seats == {}


@pytest.mark.parametrize("moment", ["2012-06-01", "2013-01-20"])
def test_a_moment_with_too_little_behind_it_is_refused(moment: str, raw_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose a later AS_OF"):
        train(settings_in(tmp_path), parse_instant(moment), "auto", 7, silent, raw_folder)

    assert not (tmp_path / "models").exists()


def test_prepared_tables_are_made_again_when_one_is_missing(raw_folder: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    made = prepare(settings, raw_folder)
    path = settings.features_dir / "plane_record.parquet"
    path.unlink()

    assert prepare(settings, raw_folder) == made
    assert path.exists()
    (settings.state_dir / "prepared.json").write_text("{}")
    assert prepare(settings, raw_folder) == made


def test_a_whole_frame_is_encoded_as_the_service_encodes_its_rows() -> None:
    frame = pd.DataFrame({"c": ["b", None, "new", "a"], "x": [1.0, np.nan, 3.0, 4.0]})
    categories: dict[str, tuple[str, ...]] = {"c": ("a", "b")}
    rows: list[dict[str, Any]] = [
        {"c": "b", "x": 1.0},
        {"c": None, "x": None},
        {"c": "new", "x": 3.0},
        {"c": "a", "x": 4.0},
    ]

    np.testing.assert_array_equal(encode(frame, ("c", "x"), categories), Encoder(("c", "x"), categories).matrix(rows))
