"""Feature tables of random values and a log of vectors that are what was known at their instants; for the audit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore

from monitoring.skew import Audit, audit
from service.feature_store import repo_config
from service.settings import Settings
from tests.bundle import primary_contract, settings_in
from tests.monitoring.logs import START, Logs, prediction_line
from training.store import apply, open_store

CONTRACT = primary_contract()
REQUESTS = 400
EVERY = {"origin_weather": 60, "origin_traffic": 15, "carrier_record": 30, "route_record": 360, "plane_record": 420}
KEYS = {
    "origin": ("EWR", "JFK", "LGA"), "carrier": ("AA", "B6", "DL", "UA"), "route": ("EWR-IAH", "JFK-LAX"),
    "tailnum": ("N1", "N2", "N3", None),
}  # fmt: skip

Line = dict[str, Any]


@dataclass
class World:
    """Feature tables of random values, and a log in which every vector is what was known at its instant."""

    settings: Settings
    store: FeatureStore
    logs: Logs

    def audited(self, lines: list[Line]) -> Audit:
        """The audit of these lines."""
        folder = self.settings.log_dir
        for path in folder.glob("*/*.jsonl"):
            path.unlink()
        Logs(lines).write(folder)
        return audit(self.store, CONTRACT, folder, self.settings.models_dir)

    def joined(self, lines: list[Line], offset: Callable[[Line], datetime]) -> list[Line]:
        """What the offline store gives for these requests at other moments."""
        rows = pd.DataFrame([{**line["request"], "event_timestamp": offset(line)} for line in lines])
        rows["scheduled_departure"] = pd.to_datetime(rows["scheduled_departure"], utc=True)
        frame = self.store.get_historical_features(rows, self.store.get_feature_service("primary")).to_df()
        plain = frame.astype(object).mask(frame.isna(), None)
        return [{name: row[name] for name in CONTRACT.features} for row in plain.to_dict("records")]


def write_tables(settings: Settings) -> None:
    """One row per key and step, over three weeks; every fourth gust is null."""
    rng = np.random.default_rng(3)
    settings.features_dir.mkdir(parents=True)
    for view in CONTRACT.views:
        (key,) = view.keys
        steps = int(timedelta(days=21) / timedelta(minutes=EVERY[view.name]))
        rows = []
        for value in KEYS[key]:
            for step in range(steps):
                at = START - timedelta(days=7) + timedelta(minutes=step * EVERY[view.name])
                numbers = {name: float(rng.integers(1, 60)) + float(rng.random()) for name in view.features}
                rows.append({key: value, **numbers, "event_timestamp": at})
        frame = pd.DataFrame([row for row in rows if row[key] is not None])
        whole = [name for name in view.features if "departures" in name or "outcomes" in name]
        frame = frame.astype(dict.fromkeys(whole, "int64")).astype({"event_timestamp": "datetime64[us, UTC]"})
        if "wind_gust" in frame:
            frame.loc[frame.index % 4 == 0, "wind_gust"] = np.nan
        if "plane_last_arrival" in frame:
            frame["plane_last_arrival"] = frame["event_timestamp"].dt.floor("min")
        frame.to_parquet(settings.features_dir / f"{view.name}.parquet")


def make_world(folder: Path) -> World:
    """Write tables and a log below ``folder``."""
    settings = settings_in(folder)
    write_tables(settings)
    apply(open_store(settings), settings)
    world = World(settings, FeatureStore(config=repo_config(settings, offline=True)), Logs())
    rng = np.random.default_rng(5)
    for i in range(REQUESTS):
        at = START + timedelta(minutes=float(rng.uniform(0, 7 * 24 * 60)))
        line = prediction_line(f"r{i}", at, {"origin": "EWR", "carrier": "UA"}, 0.2)
        request = {name: values[int(rng.integers(len(values)))] for name, values in KEYS.items()}
        line["request"] = {
            **request, "scheduled_departure": (at + timedelta(hours=2)).replace(second=0, microsecond=0),
            "distance": 1400.0, "hour_flights": int(rng.integers(1, 50)),
        }  # fmt: skip
        world.logs.predictions.append(line)
    lines = world.logs.predictions
    for line, vector in zip(lines, world.joined(lines, lambda line: line["at"]), strict=True):
        line["vector"] = vector
    rows = pd.DataFrame([{**line["request"], "event_timestamp": line["at"]} for line in lines])
    times = world.store.get_historical_features(rows, world.store.get_feature_service("primary")).event_times()
    for line, found in zip(lines, times.to_pylist(), strict=True):
        line["event_times"] = found
    return world


def changed(world: World, change: Callable[[Line], None]) -> list[Line]:
    """A copy of the log with every line changed."""
    lines = copy.deepcopy(world.logs.predictions)
    for line in lines:
        change(line)
    return lines
