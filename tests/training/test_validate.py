"""Rows that fail the suite: no training on them, and a command that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from service.errors import DataError
from service.feature_store import project
from service.settings import Settings
from tests.bundle import settings_in
from training import train as train_module
from training import validate as validate_module
from training.dataset import join_features
from training.register import connect


@pytest.fixture
def settings(prepared: Settings, tmp_path: Path) -> Settings:
    """A state folder of its own with real months prepared."""
    shutil.copytree(prepared.state_dir, tmp_path / "state")
    return settings_in(tmp_path)


def spoiled(join: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A join that puts an impossible distance into two rows."""

    def go(*args: Any) -> pd.DataFrame:
        frame = join(*args)
        frame.loc[frame.index[[3, 5]], "trip_distance"] = 9999.0
        return frame

    return go


def test_a_training_on_rows_that_fail_registers_and_seats_nothing(
    settings: Settings, raw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "join_features", spoiled(join_features))
    monkeypatch.setattr(train_module, "fit_role", lambda *_: pytest.fail("it was fitted"))

    with pytest.raises(DataError, match=r"trip_distance: 2 rows are not from 1 to 6000 \(2013-\S+: 9999\.0, 2013-"):
        train_module.train(settings, datetime(2013, 3, 1, tzinfo=UTC), "auto", 7, lambda _: None, raw_folder)

    client = connect(settings)
    experiment = client.get_experiment_by_name(project())
    assert not settings.models_dir.exists()
    assert list(client.search_registered_models()) == []
    assert list(client.search_runs([experiment.experiment_id])) == []
    assert "9999" in (settings.state_dir / "validation" / "primary" / "index.html").read_text()


def test_the_command_ends_with_one_line_of_json_and_a_code(
    settings: Settings, raw_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validate_module, "settings", lambda: settings)
    arguments = ["--as-of", "2013-03-01", "--raw", str(raw_folder)]

    assert validate_module.main(arguments) == 0
    good = json.loads(capsys.readouterr().out.splitlines()[-1])
    monkeypatch.setattr(validate_module, "join_features", spoiled(join_features))
    assert validate_module.main(arguments) == 1
    said = capsys.readouterr()
    bad = json.loads(said.out.splitlines()[-1])

    assert (good["failed"], bad["failed"], good["rows"] == bad["rows"] > 40_000) == (0, 1, True)
    assert Path(good["docs"]) == settings.state_dir / "validation" / "training" / "index.html"
    assert "trip_distance: 2 rows" in said.err
    assert validate_module.main(["--as-of", "2012-01-01", "--raw", str(raw_folder)]) == 2
