"""No feature of a flight holds anything that became known after the moment the flight is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo import features as definitions
from service.contract import ViewSpec
from service.definitions import contracts
from service.settings import Settings
from tests.bundle import settings_in
from tests.training.conftest import read_raw, write_raw
from training import source
from training.dataset import join_features
from training.prepare import prepare
from training.store import apply, open_store

CONTRACT = contracts(definitions)["primary"]


def joined(settings: Settings) -> pd.DataFrame:
    """Every prepared row with its features."""
    store = open_store(settings)
    apply(store, settings)
    return join_features(store, pd.read_parquet(settings.state_dir / "rows.parquet"), CONTRACT)


@pytest.fixture(scope="module")
def frame(prepared: Settings) -> pd.DataFrame:
    return joined(prepared)


def test_the_join_returns_every_row_once_and_in_order(prepared: Settings, frame: pd.DataFrame) -> None:
    rows = pd.read_parquet(prepared.state_dir / "rows.parquet")

    assert frame["request_id"].tolist() == rows["request_id"].tolist()
    assert len(rows) == 80_789


@pytest.mark.parametrize("view", CONTRACT.views, ids=lambda view: view.name)
def test_every_row_gets_the_newest_value_known_by_then_and_none_past_its_time_to_live(
    view: ViewSpec, prepared: Settings, frame: pd.DataFrame
) -> None:
    """The whole join against another one: pandas' ``merge_asof``, which looks backward only."""
    table = pd.read_parquet(prepared.features_dir / f"{view.name}.parquet")
    names = [name for name in view.features if name in CONTRACT.features]
    asked = frame[["event_timestamp", *view.keys]].assign(row=range(len(frame))).dropna()

    newest = pd.merge_asof(
        asked, table.sort_values("event_timestamp"), on="event_timestamp", by=list(view.keys), tolerance=view.ttl
    )

    expected = newest.set_index("row")[names].reindex(range(len(frame))).astype(float)
    assert expected.notna().any(axis=1).mean() > 0.8
    np.testing.assert_array_equal(frame[names].to_numpy(dtype=float, na_value=np.nan), expected.to_numpy())


@pytest.mark.parametrize("day", ["2013-02-10", "2013-03-12"])
def test_a_changed_future_changes_no_feature_of_the_past(
    day: str, raw_folder: Path, tmp_path: Path, frame: pd.DataFrame
) -> None:
    """Everything that became known after a moment is made worse or undone; nothing is moved before the moment."""
    moment = pd.Timestamp(day, tz="UTC")
    flights, weather, airports = read_raw(raw_folder)
    timed = source._timed(source.raw_tables(raw_folder))
    rng = np.random.default_rng(1)
    for delay, known_at in (("dep_delay", "departed"), ("arr_delay", "known_at")):
        later = ((timed[known_at] > moment) & flights[delay].notna()).to_numpy()
        flights.loc[later, delay] += rng.integers(1, 200, int(later.sum()))
    undone = (timed["departure"] > moment).to_numpy() & (rng.random(len(flights)) < 0.2)
    flights.loc[undone, ["dep_time", "dep_delay", "arr_delay"]] = None
    future = (pd.to_datetime(weather["time_hour"], utc=True) + pd.Timedelta(hours=1) > moment).to_numpy()
    for column in source.WEATHER:
        weather.loc[future, column] = weather.loc[future, column].mean() - 1e-3
    settings = settings_in(tmp_path)
    prepare(settings, write_raw(tmp_path / "raw", flights, weather, airports))

    changed = joined(settings)

    past = frame["event_timestamp"] <= moment
    assert past.sum() > 20_000
    names = list(CONTRACT.features)
    pd.testing.assert_frame_equal(frame.loc[past, names], changed.loc[past, names])
    assert not frame.loc[~past, names].equals(changed.loc[~past, names])


def test_traffic_equals_a_count_over_the_departures_that_had_happened(raw_folder: Path, frame: pd.DataFrame) -> None:
    timed = source._timed(source.raw_tables(raw_folder))
    sample = frame[frame["origin_departures_3h"].notna()].sample(100, random_state=3)

    for row in sample.itertuples():
        at = pd.Timestamp(str(row.event_timestamp)).floor("15min")
        there = timed[timed["origin"] == row.origin]
        left = there[(there["departed"] <= at) & (there["departed"] > at - pd.Timedelta(hours=3))]
        assert row.origin_departures_3h == len(left)
        if len(left):
            assert row.origin_dep_delay_3h == pytest.approx(left["dep_delay"].mean())


def test_a_planes_last_delay_is_of_a_flight_that_had_landed(raw_folder: Path, frame: pd.DataFrame) -> None:
    timed = source._timed(source.raw_tables(raw_folder))
    landed = timed[timed["arrived"].notna()].sort_values("arrived", kind="stable")
    sample = frame[frame["plane_last_arr_delay"].notna()].sample(100, random_state=3)

    for row in sample.itertuples():
        before = landed[(landed["tailnum"] == row.tailnum) & (landed["arrived"] <= row.event_timestamp)]
        assert row.plane_last_arr_delay == before["arr_delay"].iloc[-1]
