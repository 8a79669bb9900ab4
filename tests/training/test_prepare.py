"""Prepared tables are made once, made again when anything behind them changes, and replaced all or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import DataError
from service.settings import Settings
from tests.bundle import settings_in
from tests.training.conftest import read_raw, write_raw
from training.prepare import STAMP, prepare


def written(settings: Settings) -> dict[str, int]:
    """When each prepared file was written."""
    files = [*settings.features_dir.iterdir(), settings.state_dir / "rows.parquet"]
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.fixture
def small(raw_folder: Path, tmp_path: Path) -> tuple[Settings, Path]:
    """Tables prepared from January alone."""
    flights, weather, airports = read_raw(raw_folder)
    raw = write_raw(tmp_path / "raw", flights[flights["month"] == 1], weather[weather["month"] == 1], airports)
    settings = settings_in(tmp_path)
    prepare(settings, raw)
    return settings, raw


def test_nothing_is_made_again_while_nothing_changed(small: tuple[Settings, Path]) -> None:
    settings, raw = small
    before = written(settings)

    prepare(settings, raw)

    assert written(settings) == before


def test_tables_are_made_again_when_one_is_gone_or_the_code_behind_them_changed(small: tuple[Settings, Path]) -> None:
    settings, raw = small
    gone = settings.features_dir / "plane_record.parquet"

    gone.unlink()
    prepare(settings, raw)
    assert gone.exists()

    before, stamp = written(settings), settings.state_dir / STAMP
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "code": "of yesterday"}))
    prepare(settings, raw)
    assert all(written(settings)[name] > moment for name, moment in before.items())


def test_one_bad_value_leaves_every_table_and_the_stamp_as_they_were(
    small: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, raw = small
    flights, weather, airports = read_raw(raw)
    weather.loc[0, "precip"] = None
    before, stamp = written(settings), (settings.state_dir / STAMP).read_text()

    with pytest.raises(DataError, match=r"origin_weather\.precip: 1 rows are null"):
        prepare(settings, write_raw(tmp_path / "dry", flights, weather, airports))

    assert written(settings) == before
    assert (settings.state_dir / STAMP).read_text() == stamp


def test_a_folder_without_tables_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)

    with pytest.raises(DataError, match=r"airports\.csv: cannot be read"):
        prepare(settings, tmp_path)

    assert not settings.state_dir.exists()
