"""From joined rows to a fitted, evaluated, describable model, standing at one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
from training.baseline import baseline, importance
from training.estimators import evenly
from training.evaluate import evaluate
from training.reference import reference
from training.walk import out_of_sample

HOLDOUT = timedelta(days=28)
LEAST_ROWS = 1000
# Enough for a stable ranking: explaining a row takes a hundred times as long as scoring it.
EXPLAINED_ROWS = 1000


@dataclass(frozen=True)
class Fitted:
    """A model and all that belongs to it.

    Attributes:
        estimator, parameters: what fitted it.
        model: in its library's format, fitted on everything known at the moment of training.
        metrics: of a model fitted the same way without the evaluation weeks, on those weeks.
        reference: a sample of the training rows, see ``reference.py``.
        holdout: the evaluation weeks: features, ``label``, ``event_timestamp`` and ``score`` of that other model.
    """

    role: Role
    estimator: str
    parameters: dict[str, Any]
    model: bytes
    signature: Signature
    baseline: dict[str, Any]
    metrics: dict[str, float]
    contract: dict[str, Any]
    reference: bytes
    rows: int
    example: npt.NDArray[np.float64]
    holdout: pd.DataFrame = field(default_factory=pd.DataFrame)


def known_rows(rows: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """The usable rows whose label was known before a moment.

    Raises:
        DataError: when there are too few to fit and evaluate a model, or only one outcome occurs, before
            the evaluation weeks or in them.
    """
    known = rows[rows["usable"] & (rows["label_known_at"] < pd.Timestamp(at))]
    start = pd.Timestamp(at - HOLDOUT)
    fitting, holdout = known[known["label_known_at"] < start], known[known["event_timestamp"] >= start]
    for name, part in (("before the evaluation weeks", fitting), ("in the evaluation weeks", holdout)):
        if len(part) < LEAST_ROWS or part["label"].nunique() < 2:
            msg = (
                f"as of {at:%Y-%m-%d %H:%M} UTC there are {len(part)} labelled rows {name} with "
                f"{part['label'].nunique()} outcomes (needed: {LEAST_ROWS} with 2); choose a later AS_OF"
            )
            raise DataError(msg)
    return known


def fit_role(
    role: Role, frame: pd.DataFrame, contract: Contract, at: datetime, seed: int, estimator_name: str = ""
) -> Fitted:
    """Fit a role's model on rows that were known at a moment.

    Args:
        frame: joined rows from :func:`known_rows`: the contract's features, ``label``, ``label_known_at``.
        estimator_name: another estimator than the role's own.
    """
    name = estimator_name or estimator.ESTIMATOR[role]
    start = pd.Timestamp(at - HOLDOUT)
    fitting, holdout = frame[frame["label_known_at"] < start], frame[frame["event_timestamp"] >= start]
    trial = _Fit(role, fitting, contract, seed, name)
    scores = trial.trained.predict(trial.matrix(holdout))

    def fit(rows: pd.DataFrame) -> Callable[[pd.DataFrame], npt.NDArray[np.float64]]:
        earlier = _Fit(role, rows, contract, seed, name)
        return lambda later: earlier.trained.predict(earlier.matrix(later))

    unseen = pd.Series(scores, holdout.index)
    # Nobody estimates how good the fallback is: it stands in for minutes.
    if role != "fallback":
        unseen = out_of_sample(frame, at, HOLDOUT, fit, unseen)
    final = _Fit(role, frame, contract, seed, name)
    # What is explained is the model that will answer; its own evaluation weeks are as good a sample as any.
    explained = holdout.iloc[evenly(len(holdout), EXPLAINED_ROWS)]
    contributions = final.trained.contributions(final.matrix(explained))
    ranked = importance(contract, explained, contributions, final.trained.explained_by)
    signature = Signature(
        format=final.trained.format,
        service=contract.name,
        contract=contract.digest,
        features=contract.features,
        categories=final.categories,
        output=contract.output,
        base_rate=float(frame["label"].mean()),
    )
    # What is no number is for the gate to refuse.
    with np.errstate(invalid="ignore"):
        described = baseline(contract, frame, holdout, scores, ranked)
    return Fitted(
        role,
        name,
        dict(estimator.parameters(role, name)),
        final.trained.content,
        signature,
        described,
        evaluate(holdout["label"].to_numpy(dtype=float), scores),
        contract.record(),
        reference(contract, frame, unseen),
        len(frame),
        final.matrix(frame.tail(3)),
        holdout.assign(score=scores),
    )


class _Fit:
    def __init__(self, role: Role, frame: pd.DataFrame, contract: Contract, seed: int, name: str) -> None:
        self.features = contract.features
        self.categories = vocabularies(frame, contract)
        positions = [self.features.index(category) for category in self.categories]
        labels = frame["label"].to_numpy(dtype=float)
        self.trained = estimator.fit(role, self.matrix(frame), labels, positions, seed, name)

    def matrix(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        return encode(frame, self.features, self.categories)


def vocabularies(frame: pd.DataFrame, contract: Contract) -> dict[str, tuple[str, ...]]:
    """Every categorical feature's values; the position of one is its code."""
    names = [spec.name for spec in contract.fields if spec.is_category]
    return {name: tuple(sorted(frame[name].dropna().unique())) for name in names}


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
