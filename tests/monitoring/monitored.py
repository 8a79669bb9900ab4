"""A small model with a whole package, and days of traffic it answered; for the drift job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from service.contract import Contract
from service.package import Signature, save_package
from service.settings import Settings
from tests.bundle import TOYS, primary_contract, settings_in
from tests.monitoring.logs import Logs, prediction_line
from training.baseline import baseline, importance
from training.estimators import FITTERS, Trained
from training.fitting import encode
from training.reference import reference

START = datetime(2013, 10, 1, tzinfo=UTC)
CARRIERS, ORIGINS = ("AA", "B6", "UA"), ("EWR", "JFK", "LGA")
CATEGORIES: dict[str, tuple[str, ...]] = {"origin": ORIGINS, "carrier": CARRIERS}
Rng = np.random.Generator


@dataclass(frozen=True)
class Monitored:
    """A packaged model; ``settings`` has its folders."""

    settings: Settings
    contract: Contract
    digest: str
    trained: Trained

    def lines(self, frame: pd.DataFrame, digest: str | None = None) -> list[dict[str, Any]]:
        """Log lines of rows the model answered."""
        matrix = encode(frame, self.contract.features, CATEGORIES)
        plain = frame.astype(object).mask(frame.isna(), None)
        out = []
        for i, (row, score) in enumerate(zip(plain.to_dict("records"), self.trained.predict(matrix), strict=True)):
            at = row["event_timestamp"].to_pydatetime()
            vector = {name: row[name] for name in self.contract.features}
            line = prediction_line(f"{at:%Y%m%d%H%M%S%f}-{i}", at, vector, float(score))
            line["model_digest"] = digest or self.digest
            out.append(line)
        return out

    def clear(self) -> None:
        """Forget all traffic and whatever was found in it."""
        for name in ("monitoring", "reports", "logs"):
            shutil.rmtree(self.settings.state_dir / name, ignore_errors=True)

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Make these the prediction log."""
        for path in (self.settings.log_dir / "predictions").glob("*"):
            path.unlink()
        Logs(lines).write(self.settings.log_dir)


def rows(contract: Contract, seed: int, start: datetime, days: int, a_day: int) -> pd.DataFrame:
    """Rows like those of training: each day with a mood of its own, on every feature, and a label that follows one."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), a_day)
    at = pd.Timestamp(start) + pd.to_timedelta(
        day * 86400 + np.tile(np.arange(a_day), days) * (86400 / a_day), unit="s"
    )
    frame = pd.DataFrame({"event_timestamp": at.as_unit("us")})
    for spec in contract.fields:
        if spec.is_category:
            frame[spec.name] = rng.choice(np.array(CATEGORIES[spec.name], dtype=object), len(day))
        else:
            values = 10 + 2 * rng.normal(size=len(day)) + 0.3 * rng.normal(size=days)[day]
            frame[spec.name] = values.round().astype("int64") if spec.dtype == "int" else values
    strength = 1 / (1 + np.exp(-(frame["temp"] - 11)))
    frame["label"] = (rng.random(len(day)) < strength).astype(float)
    return frame


def monitored(
    folder: Path, *, estimator: str = "lightgbm", seed: int = 1, changes: Mapping[str, Any] | None = None
) -> Monitored:
    """Fit a model on 140 days before ``START`` and package it.

    Args:
        changes: contents of files of the package in place of its own.
    """
    settings, contract = settings_in(folder), primary_contract()
    frame = rows(contract, seed, START - timedelta(days=140), 140, 36)
    x, y = encode(frame, contract.features, CATEGORIES), frame["label"].to_numpy()
    trained = FITTERS[estimator]({**TOYS[estimator], "rounds": 20}, x, y, [], seed)
    holdout = frame[frame["event_timestamp"] >= pd.Timestamp(START - timedelta(days=28))]
    scores = trained.predict(encode(holdout, contract.features, CATEGORIES))
    ranked = importance(
        contract, holdout, trained.contributions(encode(holdout, contract.features, CATEGORIES)), "shap"
    )
    described = baseline(contract, frame, holdout, scores, ranked)
    signature = Signature(
        trained.format, contract.name, contract.digest, contract.features, CATEGORIES, "probability", float(y.mean())
    )
    wanted: dict[str, Any] = {
        "baseline": described,
        "reference": reference(contract, frame, pd.Series(scores, holdout.index)),
    }
    wanted |= changes or {}
    digest, _ = save_package(
        settings.models_dir, trained.content, signature, wanted["baseline"], {"seed": seed}, contract.record(),
        wanted["reference"],
    )  # fmt: skip
    return Monitored(settings, contract, digest, trained)
