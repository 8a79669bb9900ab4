"""Judges a candidate before anything of it is kept: against limits, and against the model it would follow.

The numbers come from the evaluation weeks. Quality is that of the model which has not seen them; what would be seated
is a refit with them, of which is asked that it answers, quickly, and much as the other did.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.clock import parse_instant
from service.errors import PackageError, UnderstudyError
from service.models import open_model
from service.package import PackagedModel, read_package
from service.progress import Say
from service.roles import Role, kind_of, load_role, read_roles
from training.estimators import evenly
from training.evaluate import calibration_error, evaluate
from training.fitting import Fitted

Array = npt.NDArray[np.float64]
Direction = Literal["at least", "at most"]
Row = Mapping[str, Any]

MOST_VALUES = 24
BINS = 20
_CALLS = 101
_MILLISECONDS = 1000
# Keeps the logarithm finite, as in scikit-learn.
_TINY = 1e-15


class GateRefused(UnderstudyError):
    """A candidate broke a limit; nothing was registered or seated.

    Attributes:
        failed: the checks it failed.
    """

    def __init__(self, message: str, failed: Sequence[Check]) -> None:
        super().__init__(message)
        self.failed = tuple(failed)


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep. "Excess" is log loss minus that of always answering the rate, in nats.

    Source of the defaults: ten trainings on the reference data, as of March to December, each compared with every
    earlier one; the worst figure among these honest ones is in brackets.

    Attributes:
        slice_rows: fewest rows of a slice that is judged by itself.
        slice_outcomes: fewest rows of either outcome in a slice whose AUC is judged.
        auc: least AUC (0.691).
        excess: greatest excess over all rows (-0.041).
        slice_excess: and within a slice (0.027).
        ece: greatest expected calibration error (0.058).
        spread: least standard deviation of the answers (0.119).
        refit_psi: greatest PSI from the evaluated model's answers to the refit one's (0.124).
        worse_log_loss, worse_auc: how much worse than the incumbent on the same rows (0.003, 0.002).
        slice_worse_log_loss, slice_worse_auc: and within a slice (0.036, 0.048).
        shift_psi: greatest PSI from the incumbent's answers to the candidate's on the same rows (0.263).
        baseline_psi: how much further than the incumbent itself, on these rows, from the incumbent's training
            baseline, in PSI (0.343). The distance alone says nothing: the season makes it 1.0 for a good model.
        slower: greatest ratio of the times to score one row.
        quick_ms: a time that is not held against anybody.
        slow_ms: greatest time when there is no incumbent; an answer has 50 ms in all.
    """

    slice_rows: int = 300
    slice_outcomes: int = 50
    auc: float = 0.65
    excess: float = 0.0
    slice_excess: float = 0.1
    ece: float = 0.1
    spread: float = 0.01
    refit_psi: float = 0.5
    worse_log_loss: float = 0.01
    worse_auc: float = 0.02
    slice_worse_log_loss: float = 0.06
    slice_worse_auc: float = 0.1
    shift_psi: float = 0.5
    baseline_psi: float = 0.5
    slower: float = 5.0
    quick_ms: float = 4.0
    slow_ms: float = 10.0


# The fallback knows the request only, so a season it cannot see passes for its own error (worst honest figures: AUC
# 0.620, excess 0.038 and 0.129 in a slice, calibration error 0.137).
FALLBACK = Limits(auc=0.58, excess=0.1, slice_excess=0.25, ece=0.2)
LIMITS: Mapping[Role, Limits] = {"primary": Limits(), "shadow": Limits(), "fallback": FALLBACK}


@dataclass(frozen=True)
class Check:
    """One number against its limit; a number that could not be had (NaN) fails."""

    name: str
    value: float
    limit: float
    direction: Direction
    passed: bool
    message: str


@dataclass(frozen=True)
class Slice:
    """The rows of one value of one column; differences are None where they cannot be had."""

    name: str
    rows: int
    excess: float
    worse_log_loss: float | None
    worse_auc: float | None


@dataclass(frozen=True)
class Against:
    """A candidate compared with its incumbent; see :class:`Limits`.

    The differences in quality are None when the incumbent learned from days the evaluated model has not seen.
    """

    name: str
    rows: int
    worse_log_loss: float | None
    worse_auc: float | None
    shift_psi: float
    baseline_psi: float | None
    latency_ms: float


@dataclass(frozen=True)
class Measured:
    """What is known of a candidate; NaN where its answers do not allow it.

    Attributes:
        unusable: answers, of either of its two models, that are no probability.
        notes: what could not be compared, and why.
    """

    rows: int
    unusable: int
    spread: float
    auc: float
    excess: float
    ece: float
    refit_psi: float
    latency_ms: float
    slices: tuple[Slice, ...]
    against: Against | None
    notes: tuple[str, ...]


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


def decide(measured: Measured, limits: Limits) -> tuple[Check, ...]:
    """Hold measured numbers against limits. Pure."""
    return tuple(_decide(measured, limits))


def _decide(m: Measured, limits: Limits) -> Iterator[Check]:
    yield _check(
        "unusable_answers", m.unusable, 0, "at most", "answers of its two models that are no number from 0 to 1"
    )
    if m.unusable:
        return
    yield _check("spread", m.spread, limits.spread, "at least", "standard deviation; a constant tells nothing")
    yield _check("auc", m.auc, limits.auc, "at least", "how well it ranks the outcomes of the evaluation weeks")
    yield _check("excess", m.excess, limits.excess, "at most", "log loss above that of always answering the rate")
    yield _check("ece", m.ece, limits.ece, "at most", "mean gap between its probabilities and the rates that came true")
    yield _check(
        "refit_psi", m.refit_psi, limits.refit_psi, "at most", "how unlike the evaluated model the refit answers"
    )
    slow = max(limits.quick_ms, limits.slower * m.against.latency_ms) if m.against else limits.slow_ms
    yield _check("latency_ms", m.latency_ms, slow, "at most", _beside(m.against))
    for part in m.slices:
        yield _check(f"excess[{part.name}]", part.excess, limits.slice_excess, "at most", f"in {part.rows} rows")
    if m.against:
        yield from _compare(m.against, m.slices, limits)


def _compare(found: Against, slices: Sequence[Slice], limits: Limits) -> Iterator[Check]:
    told = f"than {found.name} on the same rows"
    yield _check(
        "shift_psi",
        found.shift_psi,
        limits.shift_psi,
        "at most",
        f"how unlike {found.name} it answers on the same rows; see why",
    )
    if found.baseline_psi is not None:
        about = f"further from the training baseline {told}; see why"
        yield _check("baseline_psi", found.baseline_psi, limits.baseline_psi, "at most", about)
    whole = Slice("", found.rows, 0, found.worse_log_loss, found.worse_auc)
    for part in (whole, *slices):
        where = f"[{part.name}]" if part.name else ""
        loss, auc = limits.slice_worse_log_loss, limits.slice_worse_auc
        if not part.name:
            loss, auc = limits.worse_log_loss, limits.worse_auc
        for name, value, limit in (("log_loss", part.worse_log_loss, loss), ("auc", part.worse_auc, auc)):
            if value is not None:
                yield _check(f"worse_{name}{where}", value, limit, "at most", f"worse {told}, in {part.rows} rows")


def _check(name: str, value: float, limit: float, direction: Direction, about: str) -> Check:
    passed = value >= limit if direction == "at least" else value <= limit
    return Check(name, value, limit, direction, passed, f"{name} is {value:.4g} ({direction} {limit:.4g}): {about}")


def _beside(found: Against | None) -> str:
    return f"median time for one row; {found.name} takes {found.latency_ms:.2f}" if found else "median time for one row"


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


def judge(folder: Path, models_dir: Path, fitted: Fitted, at: datetime, forced: str, say: Say) -> tuple[Check, ...]:
    """Measure and decide on a candidate, write ``<role>-<as_of>.json`` in a folder and return the failed checks.

    Args:
        forced: why the checks are to be passed over, "" when they are not.
    """
    limits = LIMITS[kind_of(fitted.role)]
    incumbent, missing = find_incumbent(models_dir, fitted.role)
    measured = measure(fitted, incumbent, limits, [missing] if missing else [])
    checks = decide(measured, limits)
    failed = tuple(check for check in checks if not check.passed)
    for note in measured.notes:
        say(f"gate: {fitted.role}: {note}")
    say(f"gate: {fitted.role}: {len(checks) - len(failed)} of {len(checks)} checks passed")
    plain = {
        "role": fitted.role,
        "as_of": at.isoformat(),
        "passed": not failed,
        "forced": forced or None,
        "against": measured.against and asdict(measured.against),
        "rows": measured.rows,
        "notes": measured.notes,
        "checks": [{**asdict(c), "value": c.value if math.isfinite(c.value) else None} for c in checks],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{fitted.role}-{at:%Y-%m-%dT%H%M}.json").write_text(json.dumps(plain, indent=1) + "\n")
    return failed


def require(failed: Mapping[Role, Sequence[Check]], folder: Path) -> None:
    """Refuse candidates that failed checks.

    Raises:
        GateRefused: with every failed check of every role.
    """
    found = [(role, check) for role, checks in failed.items() for check in checks]
    if found:
        lines = [f"  {role}: {check.message}" for role, check in found]
        msg = "\n".join(
            [
                f"the gate refused {' and '.join(role for role, checks in failed.items() if checks)}; nothing was "
                f"registered or seated",
                *lines,
                f"every number is in {folder}; mend data or estimator, or pass with --force-gate --reason TEXT",
            ]
        )
        raise GateRefused(msg, [check for _, check in found])


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
