"""Realized and estimated performance side by side: joins log, labels and packages. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monitoring import estimated as est
from monitoring import realized as real
from monitoring.drift_yardstick import Yardstick, read_yardstick
from monitoring.estimated import Reference, estimated
from monitoring.gap import THRESHOLD, evidence, gap
from monitoring.realized import realized
from monitoring.windows import Plan
from service.errors import PackageError

# Windows taken together: one alone tells of a bad day, four weeks of a model that has become worse.
SPANS = (1, 7, 28)
_SLICED = 28
Value = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Stretch:
    """One stretch of windows and who answered in it.

    Attributes:
        span: windows in it when it is whole.
        rows: requests; ``labelled``: those whose truth is known.
        realized, estimated: per measure the value and its interval; empty without data, then the reason says why.
        outside: share of requests unlike any of the reference.
        trusted: whether the estimate can be; None where there is none.
        evidence: of concept drift so far, see :mod:`monitoring.gap`; None where no truth is known.
    """

    start: datetime
    end: datetime
    span: int
    digest: str | None
    version: str | None
    role: str
    rows: int
    labelled: int
    realized: Mapping[str, Value] = field(default_factory=dict)
    realized_reason: str = ""
    estimated: Mapping[str, Value] = field(default_factory=dict)
    estimated_reason: str = ""
    outside: float | None = None
    trusted: bool | None = None
    evidence: float | None = None

    @property
    def drifted(self) -> bool:
        """Whether truth has left the estimate for good."""
        return self.evidence is not None and self.evidence >= THRESHOLD

    @property
    def length(self) -> timedelta:
        """Of the whole stretch."""
        return self.end - self.start

    @property
    def key(self) -> tuple[datetime, int, str | None, str]:
        """What makes it one stretch and not another."""
        return self.start, self.span, self.digest, self.role


@dataclass(frozen=True)
class Slice:
    """One value of one declared column, over the newest windows with truth."""

    column: str
    value: str
    labelled: int
    measures: Mapping[str, Value]


@dataclass(frozen=True)
class Found:
    """What is known of performance: stretches in order of time, slices of the newest four weeks, what was missing."""

    stretches: tuple[Stretch, ...] = ()
    slices: tuple[Slice, ...] = ()
    notes: tuple[str, ...] = ()


def measure(
    frame: pd.DataFrame, truth: pd.DataFrame, models_dir: Path, plan: Plan, complete: float, slices: tuple[str, ...]
) -> Found:
    """Measure every model and role of the log.

    Args:
        frame: what :func:`monitoring.windows.cut` kept.
        truth: ``request_id, label``: the labels that count.
        complete: least share of labels from which a stretch's truth is taken for the whole.
        slices: columns of ``frame``.
    """
    known = truth.drop_duplicates("request_id").set_index("request_id")["label"]
    names = [name for name in map(str, frame) if name.startswith("vector.")]
    kept = ["request_id", "at", "role", "window", "model", "model_version", "prediction"]
    rows = frame[list(dict.fromkeys([*kept, *names, *slices]))].assign(label=frame["request_id"].map(known))
    rows = rows[rows["role"].isin(("primary", "fallback"))]
    stretches: list[Stretch] = []
    notes: list[str] = []
    for (digest, role), part in rows.groupby(["model", "role"], dropna=False, sort=False):
        name = digest if isinstance(digest, str) else None
        yardstick = _yardstick(models_dir, name, plan, notes) if role == "primary" and name else None
        stretches += _stretches(part, name, str(role), yardstick, plan, complete)
    return Found(
        tuple(sorted(stretches, key=lambda s: (s.start, s.span, s.digest or "", s.role))),
        _slices(rows[rows["role"].eq("primary")], slices), tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _yardstick(models_dir: Path, digest: str, plan: Plan, notes: list[str]) -> Yardstick | None:
    try:
        return read_yardstick(models_dir, digest, plan.length, ())
    except PackageError as error:
        notes.append(f"no estimate of model {digest[:12]}: {error}")
        return None


def _stretches(
    rows: pd.DataFrame, digest: str | None, role: str, yardstick: Yardstick | None, plan: Plan, complete: float
) -> Iterable[Stretch]:
    version = next((str(v) for v in rows["model_version"] if isinstance(v, str)), None)
    references = _references(yardstick, plan) if yardstick is not None else ()
    # Every stretch takes its rows from here: what they do not need makes them slow.
    narrow = rows[["at", "prediction", "label", "window"]].reset_index(drop=True)
    if references:
        narrow["outside"] = references[0].unlike(rows)
    for span in SPANS:
        parts = narrow.assign(stretch=narrow["window"] // span)
        found = realized(parts, ["stretch"], complete).set_index("stretch")
        guesses = pd.DataFrame()
        told: dict[int, float] = {}
        if references:
            reference = references[min(span, 2) - 1]
            guesses = estimated(parts, reference, "stretch").set_index("stretch")
            told = _evidence(parts, found, reference) if span == 1 else {}
        for number, one in found.iterrows():
            place = int(str(number))
            guess = guesses.loc[place].squeeze() if place in guesses.index else None
            yield Stretch(
                plan.starts(place * span), plan.starts((place + 1) * span), span, digest, version, role,
                int(one["rows"]), int(one["labelled"]), _values(one, real.MEASURES), str(one["reason"]),
                **({} if guess is None else _told(guess)), evidence=told.get(place),
            )  # fmt: skip


def _references(yardstick: Yardstick, plan: Plan) -> tuple[Reference, Reference]:
    """For single windows, and for stretches: in weeks of the sample, or in windows where it has too few weeks."""
    sample, names = yardstick.sample, yardstick.signature.features
    one, week = (Reference.of(sample, names, length) for length in (plan.length, plan.length * SPANS[1]))
    return one, one if isinstance(week.calibration, str) else week


def _told(guess: Any) -> dict[str, Any]:
    values = _values(guess, est.MEASURES)
    return {
        "estimated": values, "estimated_reason": str(guess["reason"]), "outside": float(guess["outside"]),
        "trusted": bool(guess["trusted"]) if values else None,
    }  # fmt: skip


def _evidence(rows: pd.DataFrame, found: pd.DataFrame, reference: Reference) -> dict[int, float]:
    if isinstance(reference.calibration, str):
        return {}
    whole = found.index[found["reason"] == ""]
    gaps: dict[int, tuple[float, float] | None] = {
        int(str(place)): gap(part, reference.calibration)
        for place, part in rows[rows["stretch"].isin(whole)].groupby("stretch")
    }
    known = {place: value for place, value in gaps.items() if value is not None}
    path = evidence(np.array(list(known.values())).reshape(-1, 2), reference.persistence)
    return dict(zip(known, path.tolist(), strict=True))


def _values(row: pd.Series[Any], names: Iterable[str]) -> dict[str, Value]:
    out = {}
    for name in names:
        value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
        if value is not None and not pd.isna(value):
            out[name] = (float(value), _number(low), _number(high))
    return out


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _slices(rows: pd.DataFrame, columns: tuple[str, ...]) -> tuple[Slice, ...]:
    """The newest four weeks of windows whose truth is known, of the model that answered last in them."""
    known = rows[rows["label"].notna()]
    if known.empty:
        return ()
    newest = known[(known["window"] > known["window"].max() - _SLICED) & known["model"].eq(known["model"].iloc[-1])]
    out = []
    for column in columns:
        if column not in newest:
            continue
        found = realized(newest.assign(value=newest[column].astype(str)), ["value"])
        out += [
            Slice(column.partition(".")[2], str(one["value"]), int(one["labelled"]), _values(one, real.MEASURES))
            for _, one in found.iterrows()
            if one["reason"] == ""
        ]
    return tuple(out)
