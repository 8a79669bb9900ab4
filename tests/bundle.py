"""A whole small bundle for tests: packages, roles and an online store, made in seconds without training on flights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore

from feature_repo import features as definitions
from service.contract import Contract
from service.definitions import contracts
from service.feature_store import repo_config
from service.package import Signature, save_package
from service.roles import Role, Seat, move_roles, read_roles
from service.settings import Settings
from training.estimators import FITTERS

NOW = datetime(2013, 10, 1, 12, 0, tzinfo=UTC)
TOYS: dict[str, dict[str, Any]] = {
    "lightgbm": {"objective": "binary", "num_leaves": 4, "rounds": 5},
    "xgboost": {"objective": "binary:logistic", "max_depth": 2, "rounds": 5},
    "logistic": {},
    "logistic_onnx": {},
    "hist_gradient": {"max_iter": 5, "max_leaf_nodes": 4},
}
# All a service looks at of a package's sample.
SAMPLE = b"PAR1PAR1"
CATEGORIES = {"origin": ("EWR", "JFK", "LGA"), "carrier": ("AA", "B6", "UA")}
REQUEST: dict[str, Any] = {
    "origin": "EWR",
    "carrier": "UA",
    "route": "EWR-IAH",
    "tailnum": "N14228",
    "scheduled_departure": "2013-10-01T14:00:00+00:00",
    "distance": 1400.0,
    "hour_flights": 20,
}
STORED: dict[str, dict[str, Any]] = {
    "origin_weather": {
        "origin": "EWR", "temp": 60.0, "dewp": 50.0, "humid": 70.0, "wind_dir": 180.0, "wind_speed": 8.0,
        "wind_gust": None, "precip": 0.0, "pressure": 1015.0, "visib": 10.0,
    },
    "origin_traffic": {"origin": "EWR", "origin_dep_delay_3h": 4.0, "origin_departures_3h": 40},
    "carrier_record": {
        "carrier": "UA", "carrier_late_rate_6h": 0.1, "carrier_outcomes_6h": 30, "carrier_late_rate_7d": 0.2,
    },
    "route_record": {"route": "EWR-IAH", "route_late_rate_14d": 0.15, "route_outcomes_14d": 60},
    "plane_record": {
        "tailnum": "N14228", "plane_last_arr_delay": 3.0, "plane_last_arrival": NOW - timedelta(hours=5),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """Where a test's bundle lives."""

    settings: Settings
    contract: Contract


def parsed_request(**changes: Any) -> dict[str, Any]:
    """A request as the door hands it on."""
    at = datetime.fromisoformat(REQUEST["scheduled_departure"])
    return {**REQUEST, "scheduled_departure": at, **changes}


def primary_contract() -> Contract:
    """The contract of the real definitions' primary service."""
    return contracts(definitions)["primary"]


def settings_in(folder: Path, **more: Any) -> Settings:
    """Settings whose every file is below ``folder``."""
    return Settings(state_dir=folder / "state", models_dir=folder / "models", **more)


def make_bundle(folder: Path, **more: Any) -> Bundle:
    """Seat three small models and fill the online store with one row per view, all known at ``NOW``."""
    settings = settings_in(folder, **more)
    for role in ("primary", "fallback", "shadow"):
        seat_model(settings, role, seed=len(role))
    store_rows(settings, STORED)
    return Bundle(settings, primary_contract())


def seat_model(
    settings: Settings, role: Role, *, seed: int, estimator: str = "lightgbm", record: Mapping[str, Any] | None = None
) -> Seat:
    """Train a toy model on noise, package it and seat it; ``record`` is added to its package's record."""
    contract = contracts(definitions)["request_only" if role == "fallback" else "primary"]
    rng = np.random.default_rng(seed)
    x, y = rng.random((300, len(contract.features))), rng.integers(0, 2, 300)
    trained = FITTERS[estimator](TOYS[estimator], x, y.astype(float), [], seed)
    signature = Signature(
        trained.format, contract.name, contract.digest, contract.features, CATEGORIES, "probability", float(y.mean())
    )
    digest, path = save_package(
        settings.models_dir, trained.content, signature, {}, {"seed": seed, **(record or {})}, contract.record(), SAMPLE
    )
    seat = Seat(str(seed), digest, str(path.relative_to(settings.models_dir)))
    move_roles(settings.models_dir, read_roles(settings.models_dir).revision, {role: seat})
    return seat


def store_rows(settings: Settings, rows: Mapping[str, Mapping[str, Any]], at: datetime | None = None) -> None:
    """Register the definitions and write one row per view to the online store, known at ``at``."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(config=repo_config(settings))
    store.apply([o for o in vars(definitions).values() if hasattr(o, "to_proto")])
    for name, row in rows.items():
        frame = pd.DataFrame([{**row, "event_timestamp": at or NOW - timedelta(minutes=10)}])
        store.write_to_online_store(name, frame.astype({c: float for c in frame if frame[c].isna().all()}))
