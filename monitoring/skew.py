"""Gathers what the skew audit compares: logged vectors, the offline store's values, training's sample, the models."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from monitoring import export
from monitoring.distributions import Shift, shifts
from monitoring.parity import Parity, compare, is_stored
from monitoring.parity_causes import Bools, Vectors
from monitoring.redacted import removed, stood_in, unknowable
from service.contract import Contract
from service.errors import DataError, NotReady, PackageError
from service.package import load_package, read_package

# Scored again at most, spread evenly; a wrong encoder shows in the first hundred.
MOST_SCORED = 20_000
SCORE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Scores:
    """Logged predictions against those the logged model's package gives for the logged vector.

    Attributes:
        compared: predictions scored again.
        equal: of those, how many came out the same (to 1e-9).
        unknown: digests of models whose package is not here.
        redacted: predictions left out, because the log does not hold a value their model takes.
    """

    compared: int
    equal: int
    unknown: tuple[str, ...]
    redacted: int = 0


@dataclass(frozen=True)
class Audit:
    """Everything the audit found.

    Attributes:
        damaged_lines: lines of the log that were no record.
        shifts: per feature training against serving; empty when no package with a sample is here.
        sample_of: digest of the model whose training sample was compared.
    """

    parity: Parity
    scores: Scores
    shifts: tuple[Shift, ...]
    sample_of: str | None
    damaged_lines: int
    first: Any
    last: Any


def audit(store: FeatureStore, contract: Contract, log_dir: Path, models_dir: Path) -> Audit:
    """Recompute every logged vector at its own instant and compare.

    Raises:
        NotReady: when nothing was logged, or nothing registered in the offline store.
        DataError: when a feature table cannot be read or lost rows.
    """
    log = export.predictions(log_dir, contract)
    if log.frame.empty:
        msg = f"no predictions in {log_dir}; run `make serve` and `make replay` first"
        raise NotReady(msg)
    frame = log.frame
    requests = stood_in(_requests(frame, contract), frame, contract)
    hidden = unknowable(frame, contract)
    served = frame[[f"vector.{name}" for name in contract.features]].set_axis(list(contract.features), axis=1)

    def recompute(rows: pd.DataFrame) -> pd.DataFrame:
        return _joined(store, contract, rows)[0]

    expected, times = _joined(store, contract, requests, dated=True)
    views = [view.name for view in contract.views]
    gone = removed(frame)
    for view in contract.views:
        for key in gone.keys() & set(view.keys):
            times.loc[gone[key], view.name] = pd.NaT
    vectors = Vectors(
        requests,
        served,
        expected,
        frame[[f"event_time.{name}" for name in views]].set_axis(views, axis=1),
        times,
        ~frame["fallback_reason"].fillna("").str.contains("store_unavailable").to_numpy(bool),
        hidden,
    )
    parity = compare(vectors, contract, recompute)
    sample_of, sample = _sample(frame, models_dir)
    found = [] if sample is None else _shifts(sample, served, contract, vectors.read, gone)
    at = frame["at"]
    return Audit(
        parity, _scores(frame, served, models_dir, gone), tuple(found), sample_of, log.damaged_lines, at.min(), at.max()
    )  # fmt: skip


def _requests(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    names = {f"request.{spec.name}": spec.name for spec in contract.request_fields}
    requests = frame[["request_id", "at", *names]].rename(columns={**names, "at": "event_timestamp"})
    return requests.reset_index(drop=True)


def _joined(
    store: FeatureStore, contract: Contract, rows: pd.DataFrame, *, dated: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    entities = rows.drop(columns="request_id")
    job = store.get_historical_features(entities, store.get_feature_service(contract.name))
    joined = job.to_df()
    if len(joined) != len(rows):
        msg = (
            f"the offline store returned {len(joined)} rows for {len(rows)} vectors; it must keep each and their order"
        )
        raise DataError(msg)
    views = [view.name for view in contract.views]
    if dated and hasattr(job, "event_times"):
        times = job.event_times().to_pandas()[views]
    else:
        nothing = pd.Series(pd.NaT, index=range(len(rows)), dtype="datetime64[us, UTC]")
        times = pd.DataFrame(dict.fromkeys(views, nothing))
    return joined[list(contract.features)], times


def _sample(frame: pd.DataFrame, models_dir: Path) -> tuple[str | None, pd.DataFrame | None]:
    """The training sample of the model that answered most as primary."""
    digests = frame.loc[frame["role"].eq("primary"), "model_digest"].dropna()
    for digest in digests.value_counts().index:
        try:
            content = read_package(_folder(models_dir, digest), digest)["reference.parquet"]
            return str(digest), pd.read_parquet(io.BytesIO(content))
        except (PackageError, pa.ArrowException):
            continue
    return None, None


def _shifts(
    sample: pd.DataFrame, served: pd.DataFrame, contract: Contract, read: Bools, gone: Mapping[str, Bools]
) -> list[Shift]:
    """Compare with training what was served and is in the log; a feature that never is has no line."""
    found: list[Shift] = []
    for name in contract.features:
        # What was never read says nothing about stored features, but all about those of the request.
        rows = read if is_stored(contract, name) else np.ones(len(served), dtype=bool)
        if name in gone:
            rows = rows & ~gone[name]
        if name not in gone or rows.any():
            found += shifts(sample, served.loc[rows, [name]], contract, [name])
    return found


def _scores(frame: pd.DataFrame, served: pd.DataFrame, models_dir: Path, gone: Mapping[str, Bools]) -> Scores:
    answered = frame[frame["model_digest"].notna()]
    answered = answered.iloc[:: max(1, -(-len(answered) // MOST_SCORED))]
    compared, equal, without, unknown = 0, 0, 0, []
    for digest, rows in answered.groupby("model_digest"):
        try:
            model = load_package(_folder(models_dir, str(digest)), "", str(digest))
        except PackageError:
            unknown.append(str(digest))
            continue
        lacking = [gone[name][rows.index] for name in model.signature.features if name in gone]
        whole = rows[~np.logical_or.reduce(lacking)] if lacking else rows
        without += len(rows) - len(whole)
        if whole.empty:
            continue
        again = model.score(_records(served.loc[whole.index]))
        compared += len(whole)
        equal += int((np.abs(np.asarray(again) - whole["prediction"].to_numpy(float)) <= SCORE_TOLERANCE).sum())
    return Scores(compared, equal, tuple(unknown), without)


def _records(frame: pd.DataFrame) -> Sequence[dict[str, Any]]:
    plain = frame.astype(object).mask(frame.isna(), None)
    return [{str(k): v for k, v in row.items()} for row in plain.to_dict("records")]


def _folder(models_dir: Path, digest: str) -> Path:
    return models_dir / "packages" / digest[:16]
