"""What a model's package says about its training, made into yardsticks for monitoring.

Every part may be missing or damaged on its own: what needs it then has no data, and the reason is kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from monitoring.drift import (
    LEAST_BLOCKS,
    Between,
    Bins,
    Floats,
    Ints,
    between,
    category_bins,
    number_bins,
    tabulate,
)
from monitoring.windows import micros, period
from service.errors import PackageError
from service.package import Signature, read_package

SCORE = "prediction"
_LEAST_SAMPLE = 100


@dataclass(frozen=True)
class Stretch:
    """What is usual of one column over one span of windows.

    Attributes:
        fine: rows of the sample per phase and fine bin.
        nulls: rows of the sample per phase, with a value and without.
        shift, empty: how the sample's own stretches differ in the shares of the bins and of nulls; None when it has
            too few of them.
    """

    fine: Ints
    nulls: Ints
    shift: Between | None
    empty: Between | None


@dataclass(frozen=True)
class Column:
    """One column: its bins, its null rate in all of training, and what is usual by span."""

    bins: Bins
    null_rate: float
    stretches: Mapping[int, Stretch]


@dataclass(frozen=True)
class Scores:
    """Predictions of the evaluation weeks.

    Attributes:
        means: of whole days, in order of time.
        rows: usual number in a day.
        std: of single predictions.
        low: share between 0.4 and 0.6.
    """

    means: Floats
    rows: float
    std: float
    low: float


@dataclass(frozen=True)
class Yardstick:
    """Everything one model is held against.

    Attributes:
        rows: training rows.
        columns: by feature; ``prediction`` among them when the sample has any.
        sample: the package's reference sample.
        importance: per feature the mean absolute contribution; empty when the package has none.
        directions: per feature 1, -1 or 0.
        model: the model's file, for explaining it.
        gaps: what could not be read, and what to do.
    """

    digest: str
    signature: Signature
    rows: int
    columns: Mapping[str, Column]
    scores: Scores | None
    sample: pd.DataFrame
    importance: Mapping[str, float]
    directions: Mapping[str, int]
    model: bytes
    gaps: tuple[str, ...]


def read_yardstick(models_dir: Path, digest: str, length: timedelta, spans: tuple[int, ...]) -> Yardstick:
    """Read a model's package.

    Args:
        length: of one window.
        spans: numbers of windows that are judged together.

    Raises:
        PackageError: when the package is not there or was altered.
    """
    content = read_package(models_dir / "packages" / digest[:16], digest)
    signature = Signature.parse(json.loads(content["signature.json"]))
    baseline: dict[str, Any] = json.loads(content["baseline.json"])
    gaps: list[str] = []
    sample = _sample(content["reference.parquet"], gaps)
    columns = _columns(signature, baseline, sample, length, spans, gaps)
    scores = _scores(baseline.get("predictions"))
    if scores is None:
        gaps.append("baseline.json has no predictions per day: their mean and their confidence are not judged")
    ranking = _ranking(baseline.get("importance"), gaps)
    model = next(data for name, data in content.items() if name.startswith("model."))
    return Yardstick(
        digest, signature, int(baseline.get("rows") or len(sample)), columns, scores, sample,
        {name: float(entry["mean_abs"]) for name, entry in ranking.items()},
        {name: int(entry["direction"] or 0) for name, entry in ranking.items()}, model, tuple(gaps),
    )  # fmt: skip


def _sample(content: bytes, gaps: list[str]) -> pd.DataFrame:
    try:
        found = pd.read_parquet(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        gaps.append(f"reference.parquet cannot be read ({error}): no column is judged; run `make train`")
        return pd.DataFrame()
    if len(found) < _LEAST_SAMPLE or "event_timestamp" not in found:
        gaps.append(f"reference.parquet has {len(found)} dated rows, needs {_LEAST_SAMPLE}: no column is judged")
        return pd.DataFrame()
    return found


def _columns(
    signature: Signature, baseline: Mapping[str, Any], sample: pd.DataFrame, length: timedelta, spans: tuple[int, ...],
    gaps: list[str],
) -> dict[str, Column]:  # fmt: skip
    if sample.empty:
        return {}
    windows = micros(sample["event_timestamp"]) // (length // timedelta(microseconds=1))
    described = baseline.get("features") or {}
    out: dict[str, Column] = {}
    for name in (*signature.features, SCORE):
        if name not in sample:
            gaps.append(f"reference.parquet has no column {name}: it is not judged; run `make train`")
            continue
        about = described.get(name) or {}
        if name in signature.categories:
            bins = category_bins(name, sample[name], (*signature.categories[name], *about.get("shares", ())))
        else:
            bins = number_bins(name, sample[name])
        if bins is not None:
            null_rate = float(about.get("null_rate", sample[name].isna().mean()))
            codes = bins.codes(sample[name])
            out[name] = Column(bins, null_rate, {n: _stretch(bins, codes, windows, length, n) for n in spans})
        elif name != SCORE:
            gaps.append(f"training had no value of {name}: it is not judged")
    return out


def _stretch(bins: Bins, fine: Ints, windows: Ints, length: timedelta, span: int) -> Stretch:
    phases = _phases(windows, fine >= 0, length, span)
    blocks = windows // span
    codes = np.where(fine >= 0, bins.coarse[fine], -1)
    empty = (fine < 0).astype(np.int64)
    return Stretch(
        tabulate(fine, blocks % phases, len(bins.coarse), phases), tabulate(empty, blocks % phases, 2, phases),
        between(codes, blocks, bins.width, phases), between(empty, blocks, 2, phases),
    )  # fmt: skip


def _phases(windows: Ints, known: npt.NDArray[np.bool_], length: timedelta, span: int) -> int:
    """Phases that single windows go through (days of the week), when the sample has enough of each."""
    phases = period(length) if span == 1 else 1
    counts = np.bincount(windows[known] % phases, minlength=phases)
    blocks = np.bincount(np.unique(windows[known]) % phases, minlength=phases)
    return phases if counts.min() >= _LEAST_SAMPLE and blocks.min() >= LEAST_BLOCKS else 1


def _scores(plain: Any) -> Scores | None:
    try:
        counts, edges = np.asarray(plain["counts"], dtype=float), np.asarray(plain["edges"], dtype=float)
        middle = (edges[:-1] >= 0.4 - 1e-9) & (edges[1:] <= 0.6 + 1e-9)
        day = plain["windows"]["day"]
        means = np.asarray([day["means"][date] for date in sorted(day["means"])], dtype=float)
        return Scores(means, float(day["rows"]), float(plain["std"]), float(counts[middle].sum() / counts.sum()))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return None


def _ranking(plain: Any, gaps: list[str]) -> dict[str, dict[str, Any]]:
    try:
        found = {str(entry["feature"]): dict(entry) for entry in plain["ranking"]}
        whole = bool(found) and all(np.isfinite(float(entry["mean_abs"])) for entry in found.values())
    except (KeyError, TypeError, ValueError):
        found, whole = {}, False
    if not whole:
        gaps.append("baseline.json has no importance: whether features keep theirs is not judged")
    return found if whole else {}


def package_error(digest: str, error: PackageError) -> str:
    """Say that a model's windows cannot be judged."""
    return f"windows of model {digest[:12]} cannot be judged: {error}"
