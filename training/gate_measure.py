"""What the gate knows of a candidate: scored on the evaluation weeks, and beside the model it would follow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.clock import parse_instant
from service.errors import PackageError
from service.models import open_model
from service.package import PackagedModel, read_package
from service.roles import Role, load_role, read_roles
from training.estimators import evenly
from training.evaluate import calibration_error, evaluate
from training.fitting import Fitted
from training.gate_rules import Against, Limits, Measured, Slice

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]

MOST_VALUES = 24
BINS = 20
_CALLS = 101
_MILLISECONDS = 1000
# Keeps the logarithm finite, as in scikit-learn.
_TINY = 1e-15


@dataclass(frozen=True)
class Incumbent:
    """The model whose place is asked for.

    Attributes:
        until: what it learned from was known before; None when its record does not say.
        counts: histogram of its training baseline's predictions, ``BINS`` of equal width; empty when it has none.
    """

    name: str
    model: PackagedModel
    until: datetime | None
    counts: tuple[int, ...]


def find_incumbent(models_dir: Path, role: Role) -> tuple[Incumbent | None, str]:
    """Return the model that a candidate for ``role`` is judged against, or None and why there is none to be had.

    That is the primary, for a fallback the fallback. One whose package cannot be read must not keep a sound one out.
    """
    name: Role = "fallback" if role == "fallback" else "primary"
    seat = read_roles(models_dir).seats.get(name)
    if seat is None:
        return None, f"nobody plays {name}: absolute limits only"
    try:
        model = load_role(models_dir, name)
        contents = read_package(models_dir / seat.package, seat.digest)
    except PackageError as error:
        return None, f"{name} version {seat.version} cannot be read ({error}): absolute limits only"
    as_of = json.loads(contents["record.json"]).get("as_of")
    counts = json.loads(contents["baseline.json"]).get("predictions", {}).get("counts", [])
    until = parse_instant(as_of) if as_of else None
    return Incumbent(f"{name} version {seat.version}", model, until, tuple(counts)), ""


def measure(fitted: Fitted, incumbent: Incumbent | None, limits: Limits, notes: Sequence[str] = ()) -> Measured:
    """Score the evaluation weeks with the candidate's refit model and the incumbent, and reduce all to numbers."""
    frame, notes = fitted.holdout, list(notes)
    labels, trial = frame["label"].to_numpy(dtype=float), frame["score"].to_numpy(dtype=float)
    score = open_model(fitted.signature.format, fitted.model, len(fitted.signature.features))
    model = PackagedModel("", "", fitted.signature, score)
    rows = _plain(frame, fitted.signature.features)
    refit = np.asarray(model.score(rows))
    unusable = sum(int((~_usable(scores)).sum()) for scores in (trial, refit))
    if unusable:
        nan = math.nan
        return Measured(len(frame), unusable, nan, nan, nan, nan, nan, nan, (), None, tuple(notes))
    theirs, against, fair = _answers(incumbent, frame, notes), None, False
    few = [rows[i] for i in evenly(len(rows), _CALLS)]
    if incumbent and theirs is not None:
        fair = _fair(incumbent, frame, notes)
        latency_ms, their_ms = latency([model.score, incumbent.model.score], few)
        against = _against(incumbent, labels, trial, theirs, their_ms, fair=fair)
    else:
        (latency_ms,) = latency([model.score], few)
    metrics = evaluate(labels, trial)
    return Measured(
        rows=len(frame),
        unusable=0,
        spread=min(float(trial.std()), float(refit.std())),
        auc=metrics["auc"],
        excess=_excess(labels, trial),
        ece=calibration_error(labels, trial),
        refit_psi=psi(_histogram(trial), _histogram(refit)),
        latency_ms=latency_ms,
        slices=tuple(_slices(fitted, labels, trial, theirs if fair else None, limits)),
        against=against,
        notes=tuple(notes),
    )


def psi(reference: Sequence[int], current: Sequence[int]) -> float:
    """Population stability index between two histograms over the same bins; half a count is added to every bin."""
    shares = [(np.asarray(side) + 0.5) / (np.sum(side) + len(side) / 2) for side in (reference, current)]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def latency(models: Sequence[Callable[[Sequence[Row]], object]], rows: Sequence[Row]) -> list[float]:
    """Median time of each model to score one row, in milliseconds, taken in turns: what slows one slows all."""
    taken: list[list[float]] = [[] for _ in models]
    for row in rows:
        for model, times in zip(models, taken, strict=True):
            begun = time.perf_counter()
            model([row])
            times.append(time.perf_counter() - begun)
    return [float(np.median(times)) * _MILLISECONDS for times in taken]


def _plain(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    values = [[None if gone else v for v, gone in zip(frame[n], frame[n].isna(), strict=True)] for n in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _usable(scores: Array) -> npt.NDArray[np.bool_]:
    # Not a number is neither at least 0 nor at most 1.
    return (scores >= 0) & (scores <= 1)


def _answers(incumbent: Incumbent | None, frame: pd.DataFrame, notes: list[str]) -> Array | None:
    if incumbent is None:
        return None
    missing = [name for name in incumbent.model.signature.features if name not in frame]
    if missing:
        notes.append(f"{incumbent.name} needs {', '.join(missing)}, which is no longer made: absolute limits only")
        return None
    scores = np.asarray(incumbent.model.score(_plain(frame, incumbent.model.signature.features)))
    if not _usable(scores).all():
        notes.append(f"{incumbent.name} gives answers that are no probability: absolute limits only")
        return None
    return scores


def _fair(incumbent: Incumbent, frame: pd.DataFrame, notes: list[str]) -> bool:
    """Whether the incumbent, like the candidate's evaluated model, learned from nothing of the evaluation weeks."""
    if incumbent.until is None:
        notes.append(f"{incumbent.name} does not say until when it learned: its quality is not compared")
        return False
    start = frame["event_timestamp"].min()
    if pd.Timestamp(incumbent.until) > start:
        notes.append(
            f"{incumbent.name} learned until {incumbent.until:%Y-%m-%d %H:%M} UTC, from days the evaluated model has "
            f"not seen (it is judged from {start:%Y-%m-%d %H:%M} on): its quality is not compared"
        )
        return False
    return True


def _against(
    incumbent: Incumbent, labels: Array, ours: Array, theirs: Array, latency_ms: float, *, fair: bool
) -> Against:
    loss, auc = _worse(labels, ours, theirs if fair else None)
    counts = incumbent.counts
    further = psi(counts, _histogram(ours)) - psi(counts, _histogram(theirs)) if len(counts) == BINS else None
    shift = psi(_histogram(theirs), _histogram(ours))
    return Against(incumbent.name, len(labels), loss, auc, shift, further, latency_ms)


def _worse(labels: Array, ours: Array, theirs: Array | None, least: int = 1) -> tuple[float | None, float | None]:
    if theirs is None:
        return None, None
    loss = float((_losses(labels, ours) - _losses(labels, theirs)).mean())
    if min(labels.sum(), len(labels) - labels.sum()) < least:
        return loss, None
    return loss, evaluate(labels, theirs)["auc"] - evaluate(labels, ours)["auc"]


def _slices(fitted: Fitted, labels: Array, ours: Array, theirs: Array | None, limits: Limits) -> Iterator[Slice]:
    for name in slice_columns(fitted.holdout, fitted.contract["slices"], fitted.signature.features):
        for value, rows in sorted(fitted.holdout.groupby(name, observed=True).indices.items()):
            if len(rows) >= limits.slice_rows:
                y, a, b = labels[rows], ours[rows], None if theirs is None else theirs[rows]
                yield Slice(f"{name}={value}", len(rows), _excess(y, a), *_worse(y, a, b, limits.slice_outcomes))


def slice_columns(frame: pd.DataFrame, tagged: Sequence[str], features: Sequence[str]) -> list[str]:
    """The columns whose every value is judged by itself: tagged ones, and features of few whole numbers."""
    return [name for name in tagged if name in frame] + [
        name for name in features if name not in tagged and _few_whole_numbers(frame[name])
    ]


def _few_whole_numbers(values: pd.Series[Any]) -> bool:
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return False
    known = values.dropna().astype(float).unique()
    return 1 < len(known) <= MOST_VALUES and bool((known % 1 == 0).all())


def _histogram(scores: Array) -> list[int]:
    return [int(n) for n in np.histogram(scores, bins=BINS, range=(0.0, 1.0))[0]]


def _losses(labels: Array, scores: Array) -> Array:
    kept = np.clip(scores, _TINY, 1 - _TINY)
    return np.asarray(-(labels * np.log(kept) + (1 - labels) * np.log1p(-kept)), dtype=np.float64)


def _excess(labels: Array, scores: Array) -> float:
    constant = np.full(len(labels), labels.mean())
    return float(_losses(labels, scores).mean() - _losses(labels, constant).mean())
