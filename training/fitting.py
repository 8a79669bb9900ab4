"""From joined rows to a fitted, evaluated, describable model, standing at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.contract import Contract
from service.errors import DataError
from service.package import Signature
from service.roles import Role
from training import estimator
from training.baseline import baseline
from training.evaluate import evaluate

HOLDOUT = timedelta(days=28)
LEAST_ROWS = 1000


@dataclass(frozen=True)
class Fitted:
    """A model and all that belongs to it.

    Attributes:
        model: its text, fitted on everything known at the moment of training.
        metrics: of a model fitted the same way without the evaluation weeks, on those weeks.
    """

    role: Role
    model: str
    signature: Signature
    baseline: dict[str, Any]
    metrics: dict[str, float]
    rows: int
    example: npt.NDArray[np.float64]


def known_rows(rows: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """The usable rows whose label was known before a moment.

    Raises:
        DataError: when there are too few to fit and evaluate a model, or only one outcome occurs.
    """
    known = rows[rows["usable"] & (rows["label_known_at"] < pd.Timestamp(at))]
    fitting = known[known["label_known_at"] < pd.Timestamp(at - HOLDOUT)]
    for name, part in (("before the evaluation weeks", fitting), ("in all", known)):
        if len(part) < LEAST_ROWS or part["label"].nunique() < 2:
            msg = (
                f"as of {at:%Y-%m-%d %H:%M} UTC there are {len(part)} labelled rows {name} with "
                f"{part['label'].nunique()} outcomes (needed: {LEAST_ROWS} with 2); choose a later AS_OF"
            )
            raise DataError(msg)
    return known


def fit_role(role: Role, frame: pd.DataFrame, contract: Contract, at: datetime, seed: int) -> Fitted:
    """Fit a role's model on rows that were known at a moment.

    Args:
        frame: joined rows from :func:`known_rows`: the contract's features, ``label``, ``label_known_at``.
    """
    start = pd.Timestamp(at - HOLDOUT)
    fitting, holdout = frame[frame["label_known_at"] < start], frame[frame["event_timestamp"] >= start]
    trial = _Fit(role, fitting, contract, seed)
    scores = trial.score(holdout)
    labels = holdout["label"].to_numpy(dtype=float)
    final = _Fit(role, frame, contract, seed)
    signature = Signature(
        estimator=estimator.NAME,
        service=contract.name,
        contract=contract.digest,
        features=contract.features,
        categories=final.categories,
        output=contract.output,
        base_rate=float(frame["label"].mean()),
    )
    return Fitted(
        role,
        final.booster.model_to_string(),
        signature,
        baseline(contract, frame, labels, scores),
        evaluate(labels, scores),
        len(frame),
        final.matrix(frame.tail(3)),
    )


class _Fit:
    def __init__(self, role: Role, frame: pd.DataFrame, contract: Contract, seed: int) -> None:
        self.features = contract.features
        names = [spec.name for spec in contract.fields if spec.is_category]
        self.categories = {name: tuple(sorted(frame[name].dropna().unique())) for name in names}
        positions = [self.features.index(name) for name in names]
        labels = frame["label"].to_numpy(dtype=float)
        self.booster = estimator.fit(role, self.matrix(frame), labels, positions, seed)

    def matrix(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        return encode(frame, self.features, self.categories)

    def score(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(self.booster.predict(self.matrix(frame)), dtype=float)


def encode(
    frame: pd.DataFrame, features: tuple[str, ...], categories: dict[str, tuple[str, ...]]
) -> npt.NDArray[np.float64]:
    """What ``service.package.Encoder`` does row by row, for a whole frame at once."""
    out = np.empty((len(frame), len(features)))
    for j, name in enumerate(features):
        if name in categories:
            codes = pd.Categorical(frame[name], categories=list(categories[name])).codes.astype(float)
            out[:, j] = np.where(codes < 0, np.nan, codes)
        else:
            out[:, j] = frame[name].to_numpy(dtype=float, na_value=np.nan)
    return out
