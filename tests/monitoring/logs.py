"""Synthetic logs in the format of docs/records.md, with the real contract's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from feature_repo import features as definitions
from service.contract import Contract, FieldSpec
from service.definitions import contracts

START = datetime(2013, 10, 1, 12, tzinfo=UTC)
PRIMARY, SHADOW = ("1", "a" * 64), ("2", "b" * 64)
CARRIERS = ("AA", "B6", "UA", "DL", "EV")
Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=1)
def contract() -> Contract:
    """The real definitions' primary contract."""
    return contracts(definitions)["primary"]


@dataclass
class Logs:
    """The lines of three logs, still to be changed or written."""

    predictions: list[dict[str, Any]] = field(default_factory=list)
    shadow: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path, segments: int = 2) -> Path:
        """Write each log in a few segments below ``folder`` and return it."""
        for name in ("predictions", "shadow", "labels"):
            lines = getattr(self, name)
            (folder / name).mkdir(parents=True, exist_ok=True)
            share = -(-len(lines) // segments) or 1
            for n, start in enumerate(range(0, len(lines), share)):
                body = b"".join(line_of(record) for record in lines[start : start + share])
                (folder / name / f"20131001T120000-7-{n:05d}.jsonl").write_bytes(body)
        return folder


def line_of(record: Mapping[str, Any]) -> bytes:
    """One log line, as the service writes it."""
    return orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def sigmoid(x: Floats) -> Floats:
    """Logistic function."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float64)


def campaign(
    n: int = 3000,
    *,
    days: int = 14,
    primary_noise: float = 1.0,
    shadow_noise: float = 0.4,
    seed: int = 7,
    delay: timedelta = timedelta(hours=8),
) -> Logs:
    """A campaign of ``n`` requests over ``days``: each model sees the true log-odds plus its own noise."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.2, 1.2, n)
    truth = rng.random(n) < sigmoid(odds)
    scores = {
        "primary": sigmoid(odds + rng.normal(0, primary_noise, n)),
        "shadow": sigmoid(odds + rng.normal(0, shadow_noise, n)),
    }
    return assemble(rng, scores["primary"], scores["shadow"], truth.astype(float), days=days, delay=delay)


def assemble(
    rng: np.random.Generator, primary: Floats, shadow: Floats, truth: Floats, *, days: int = 14, delay: timedelta
) -> Logs:
    """Turn scores and truths into log lines, evenly spread over ``days``."""
    logs = Logs()
    step = timedelta(days=days) / len(primary)
    for i in range(len(primary)):
        at = START + i * step
        vector = {spec.name: _value(rng, spec) for spec in contract().fields}
        logs.predictions.append(prediction_line(f"r{i:06d}", at, vector, float(primary[i])))
        logs.shadow.append(shadow_line(f"r{i:06d}", at, float(shadow[i]), latency_ms=float(rng.gamma(9, 0.3))))
        logs.labels.append(label_line(f"r{i:06d}", float(truth[i]), at + delay))
        logs.predictions[-1]["stages_ms"]["primary"] = float(rng.gamma(9, 0.3))
    return logs


def prediction_line(request_id: str, at: datetime, vector: Mapping[str, Any], score: float) -> dict[str, Any]:
    """One line of the prediction log, answered by the primary."""
    request = {
        "origin": vector["origin"],
        "carrier": vector["carrier"],
        "route": "EWR-IAH",
        "tailnum": None,
        "scheduled_departure": at + timedelta(hours=2),
        "distance": 1400.0,
        "hour_flights": 20,
    }
    return {
        "request_id": request_id,
        "at": at,
        "request": request,
        "vector": dict(vector),
        "event_times": {view.name: at - timedelta(minutes=20) for view in contract().views},
        "role": "primary",
        "model_version": PRIMARY[0],
        "model_digest": PRIMARY[1],
        "prediction": score,
        "confidence": "normal",
        "fallback_reason": None,
        "violations": [],
        "stages_ms": {"lookup": 0.6, "validate": 0.1, "primary": 2.5, "total": 3.3},
        "shadow_sampled": True,
        "service_version": "0.1.0",
    }


def shadow_line(request_id: str, at: datetime, score: float | None, *, latency_ms: float = 2.5) -> dict[str, Any]:
    """One line of the shadow log, scored."""
    return {
        "request_id": request_id,
        "at": at,
        "outcome": "scored",
        "reason": None,
        "model_version": SHADOW[0],
        "model_digest": SHADOW[1],
        "prediction": score,
        "latency_ms": latency_ms,
        "batch": 1,
    }


def drop(line: dict[str, Any], reason: str) -> None:
    """Turn a shadow line into the one written when the request was dropped."""
    kept = ("model_version", "model_digest") if reason == "invalid_output" else ()
    for name in ("model_version", "model_digest", "prediction", "latency_ms", "batch"):
        if name not in kept:
            line[name] = None
    line.update(outcome="dropped", reason=reason)


def label_line(request_id: str, label: float, known_at: datetime) -> dict[str, Any]:
    """One line of the label log, received a minute after it became known."""
    return {"request_id": request_id, "label": label, "known_at": known_at, "at": known_at + timedelta(minutes=1)}


def all_ids(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The request ids of some lines, in order."""
    return [str(line["request_id"]) for line in lines]


def _value(rng: np.random.Generator, spec: FieldSpec) -> Any:
    if spec.name == "carrier":
        return CARRIERS[int(rng.integers(len(CARRIERS)))]
    if spec.allowed:
        return spec.allowed[int(rng.integers(len(spec.allowed)))]
    if spec.nullable and rng.random() < 0.1:
        return None
    low, high = spec.minimum or 0.0, spec.maximum or 1.0
    value = rng.uniform(low, high)
    return int(value) if spec.dtype == "int" else round(float(value), 3)
