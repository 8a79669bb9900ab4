"""Fixtures of the training tests: two real months of raw tables, and what is prepared from them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from service.settings import Settings
from tests.bundle import settings_in
from training import source
from training.prepare import prepare


def write_raw(folder: Path, flights: pd.DataFrame, weather: pd.DataFrame, airports: pd.DataFrame) -> Path:
    """Write raw tables as the data package lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("flights", flights), ("weather", weather), ("airports", airports)):
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def read_raw(folder: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The raw tables as they are in the files, unchecked."""
    files = source.raw_files(folder)
    flights, weather, airports = (pd.read_csv(files[name]) for name in ("flights", "weather", "airports"))
    return flights, weather, airports


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """January to March of the real data (March has a night in which the clocks change)."""
    flights, weather, airports = read_raw()
    early = flights["month"] <= 3
    return write_raw(tmp_path_factory.mktemp("raw"), flights[early], weather[weather["month"] <= 3], airports)


@pytest.fixture(scope="session")
def prepared(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A state folder with tables prepared from those months."""
    settings = settings_in(tmp_path_factory.mktemp("prepared"))
    prepare(settings, raw_folder)
    return settings
