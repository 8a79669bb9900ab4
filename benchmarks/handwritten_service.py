"""The service a careful team writes by hand: FastAPI, Feast, a validator, a monitor, a breaker, a log, a shadow.

Everything happens in the request, one thing after the other, as the guides on the subject show it: features from
Feast, checked one by one, scored by the primary behind a circuit breaker with a fallback, measured with Prometheus,
scored by the shadow as well, written to a log and flushed, answered. It is the thing to beat in ``serving.py``, so it
is written to be fast where that costs no more code: objects are made once, the registry is never refreshed.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections import Counter as Tally
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import lightgbm
import numpy as np
from fastapi import FastAPI, Response
from feast import FeatureStore
from prometheus_client import Counter, Histogram, generate_latest
from pydantic import AwareDatetime, BaseModel

from service.contract import Contract
from service.roles import Role, read_roles

LATENCY = Histogram("handwritten_prediction_latency_seconds", "Time to score one row.")
SCORE = Histogram("handwritten_score", "Scores.", buckets=[i / 10 for i in range(11)])
PREDICTIONS = Counter("handwritten_predictions_total", "Predictions.", ["version", "outcome"])
MISSING = Counter("handwritten_feature_missing_total", "Features without a value.", ["feature"])


class PredictRequest(BaseModel):
    """One flight two hours before it leaves."""

    origin: Literal["EWR", "JFK", "LGA"]
    carrier: str
    route: str
    tailnum: str | None
    scheduled_departure: AwareDatetime
    distance: float
    hour_flights: int
    request_id: str | None = None


class Model:
    """A LightGBM model file with the names and vocabularies it was trained on."""

    def __init__(self, models_dir: Path, role: Role) -> None:
        seat = read_roles(models_dir).seats[role]
        folder = models_dir / seat.package
        signature = json.loads((folder / "signature.json").read_text())
        self.version = seat.version
        self.names: list[str] = signature["features"]
        self._codes = {name: {v: i for i, v in enumerate(known)} for name, known in signature["categories"].items()}
        self._booster = lightgbm.Booster(model_file=str(folder / "model.txt"))

    def encode(self, features: Mapping[str, Any]) -> list[float]:
        """Return the model's inputs in order; a null or an unknown category is NaN."""
        row = []
        for name in self.names:
            value = features[name]
            if value is not None and name in self._codes:
                value = self._codes[name].get(value)
            row.append(math.nan if value is None else float(value))
        return row

    def predict(self, features: Mapping[str, Any]) -> float:
        """Return the positive class's probability."""
        return float(self._booster.predict(np.array([self.encode(features)]), num_threads=1)[0])


class Features:
    """Online features of one request, and when each view's values became known."""

    def __init__(self, repo: Path, contract: Contract) -> None:
        self._store = FeatureStore(repo_path=str(repo))
        self._service = self._store.get_feature_service("primary")
        self._names = contract.features
        self._view_of = {name: view.name for view in contract.views for name in view.features}

    def fetch(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, datetime]]:
        """Ask Feast; returns the values by feature and the event times by feature."""
        found = self._store.get_online_features(self._service, [dict(request)]).to_dict(include_event_timestamps=True)
        stamp = "__ts" if "temp__ts" in found else "_ts"
        values = {name: found[name][0] if name in found else request[name] for name in self._names}
        times = {name: found[name + stamp][0] for name in self._names if name in self._view_of}
        return values, {name: datetime.fromtimestamp(at, UTC) if not isinstance(at, datetime) else at
                        for name, at in times.items() if at}  # fmt: skip


class FeatureValidator:
    """Checks every feature of a request against what is written about it."""

    def __init__(self, contract: Contract) -> None:
        limits = {name: view.max_staleness or view.ttl for view in contract.views for name in view.features}
        self._specs: dict[str, dict[str, Any]] = {
            spec.name: {
                "dtype": {"float": (int, float), "int": int, "str": str, "bool": bool}[spec.dtype],
                "nullable": spec.nullable,
                "min": spec.minimum,
                "max": spec.maximum,
                "max_staleness": limits.get(spec.name),
            }
            for spec in contract.fields
        }
        self.counts: Tally[str] = Tally()

    def validate(self, features: Mapping[str, Any], times: Mapping[str, datetime], now: datetime) -> list[str]:
        """Return what is wrong, one sentence each."""
        wrong = []
        for name, spec in self._specs.items():
            value = features.get(name)
            if value is None:
                if not spec["nullable"]:
                    wrong.append(f"NULL: {name} must have a value")
            elif not isinstance(value, spec["dtype"]):
                wrong.append(f"TYPE: {name} is a {type(value).__name__}")
            elif spec["min"] is not None and value < spec["min"]:
                wrong.append(f"RANGE: {name}={value} is less than {spec['min']}")
            elif spec["max"] is not None and value > spec["max"]:
                wrong.append(f"RANGE: {name}={value} is more than {spec['max']}")
            limit: timedelta | None = spec["max_staleness"]
            if limit and name in times and now - times[name] > limit:
                wrong.append(f"STALE: {name} is {now - times[name]} old, limit {limit}")
        self.counts.update(sentence.partition(":")[0] for sentence in wrong)
        return wrong


class ModelMonitor:
    """Scores with a model and measures what it says."""

    def __init__(self, model: Model, window: int = 1000) -> None:
        self._model = model
        self._recent: deque[float] = deque(maxlen=window)
        self._lock = threading.Lock()

    def predict(self, features: Mapping[str, Any]) -> float:
        """Return the model's score."""
        for name, value in features.items():
            if value is None:
                MISSING.labels(name).inc()
        begun = time.perf_counter()
        score = self._model.predict(features)
        LATENCY.observe(time.perf_counter() - begun)
        SCORE.observe(score)
        PREDICTIONS.labels(self._model.version, "positive" if score >= 0.5 else "negative").inc()
        with self._lock:
            self._recent.append(score)
        return score


class ResilientPredictor:
    """Primary behind a circuit breaker, then the fallback, then nothing."""

    def __init__(
        self,
        primary: ModelMonitor,
        fallback: Model,
        *,
        threshold: float = 0.1,
        window_s: float = 300,
        recovery_s: float = 60,
        minimum: int = 10,
    ) -> None:
        self._primary, self._fallback = primary, fallback
        self._threshold, self._window_s, self._recovery_s, self._minimum = threshold, window_s, recovery_s, minimum
        self._calls: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._opened_at: float | None = None
        self._lock = threading.Lock()

    def predict(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Answer, saying who answered and how sure that makes the caller."""
        now = time.monotonic()
        if self._opened_at is not None and now - self._opened_at < self._recovery_s:
            return self._fall_back(features, "circuit_open")
        try:
            score = self._primary.predict(features)
        except Exception as error:  # whatever the model raises, the caller gets an answer
            self._settle(now, failed=True)
            return self._fall_back(features, f"exception: {error}")
        if not 0.0 <= score <= 1.0:
            self._settle(now, failed=True)
            return self._fall_back(features, f"validation_failed: {score}")
        self._settle(now, failed=False)
        return {"prediction": score, "model": "primary", "confidence": "normal", "fallback_reason": None}

    def _settle(self, now: float, *, failed: bool) -> None:
        with self._lock:
            self._calls.append((now, failed))
            self._failures += failed
            while self._calls and self._calls[0][0] < now - self._window_s:
                self._failures -= self._calls.popleft()[1]
            broken = len(self._calls) >= self._minimum and self._failures / len(self._calls) > self._threshold
            self._opened_at = now if failed and broken else self._opened_at if broken else None

    def _fall_back(self, features: Mapping[str, Any], reason: str) -> dict[str, Any]:
        try:
            score = self._fallback.predict(features)
        except Exception:  # and when the fallback fails too, it is told so
            return {"prediction": None, "model": "none", "confidence": "none", "fallback_reason": reason}
        return {"prediction": score, "model": "fallback", "confidence": "degraded", "fallback_reason": reason}


def create_app() -> FastAPI:
    """Make the service in the folder ``HANDWRITTEN_HOME`` (see ``stage.py``), its clock standing at its ``clock``."""
    from feature_repo import features as definitions
    from service.definitions import contracts

    home = Path(os.environ["HANDWRITTEN_HOME"])
    contract = contracts(definitions)["primary"]
    now = datetime.fromisoformat((home / "clock").read_text())
    features, validator = Features(home / "feast", contract), FeatureValidator(contract)
    predictor = ResilientPredictor(ModelMonitor(Model(home / "models", "primary")), Model(home / "models", "fallback"))
    shadow = Model(home / "models", "shadow")
    log = (home / "predictions.jsonl").open("a")
    app = FastAPI()

    # In the event loop: in FastAPI's threads, which take turns, it answered a fifth fewer requests.
    @app.post("/predict")
    async def predict(request: PredictRequest) -> dict[str, Any]:
        asked = request.model_dump()
        request_id = asked.pop("request_id") or uuid.uuid4().hex
        values, times = features.fetch(asked)
        violations = validator.validate(values, times, now)
        answer = {"request_id": request_id, **predictor.predict(values), "violations": violations}
        shadow_score = shadow.predict(values)
        record = {"at": now, "request": asked, "features": values, **answer, "shadow": shadow_score}
        log.write(json.dumps(record, default=str) + "\n")
        log.flush()
        return answer

    app.get("/readyz")(lambda: {"ready": True})
    app.get("/metrics")(lambda: Response(generate_latest(), media_type="text/plain"))
    return app
