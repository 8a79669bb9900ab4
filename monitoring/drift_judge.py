"""Judges the windows of one model against its yardstick: columns, predictions, latency, importance. Opens no file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from monitoring import degradation, drift_domain, importance
from monitoring.degradation import ALPHA, Check
from monitoring.drift import Distances, Floats, Ints, between, compare, distances, sums, tabulate, without_oddest
from monitoring.drift_store import ColumnResult, Window
from monitoring.drift_yardstick import SCORE, Column, Yardstick
from monitoring.redacted import removed
from monitoring.windows import Plan, micros

# Windows judged together, besides each alone: a lasting change shows in a week that is hidden in a day.
SPAN = 7
SPANS = (1, SPAN)
_LEAST_WINDOWS = 5
# Smaller differences are no drift, however sure.
LEAST_PSI, LEAST_NULLS, LEAST_UNSEEN, LEAST_UNSEEN_ROWS = 0.1, 0.05, 0.01, 5
_HISTOGRAM = 20


@dataclass(frozen=True)
class Rules:
    """What the operator may choose.

    Attributes:
        least_rows: fewer requests in a window are no data.
        agreed_ms: p99 of an answer that was agreed on.
        weekly: whether the classifier and the contributions are computed.
    """

    least_rows: int = 100
    agreed_ms: float = 50.0
    weekly: bool = True


@dataclass(frozen=True)
class _Asked:
    """One column over one span, for every window at once."""

    column: Column
    span: int
    rows: Ints
    nulls: Floats
    unseen: Floats
    unseen_rows: Ints
    shift: Distances | None
    shift_p: Floats
    nulls_p: Floats
    unseen_p: Floats


def judge_model(
    rows: pd.DataFrame, yardstick: Yardstick, plan: Plan, wanted: Collection[int], rules: Rules, before: float | None
) -> Iterator[Window]:
    """Judge the windows ``wanted`` of one model, in order of time.

    Args:
        rows: its requests in order of time, with ``window``; also those of earlier windows, which spans reach back to.
        before: moving average at the end of the window before the first one wanted.
    """
    windows = rows["window"].to_numpy(dtype=np.int64)
    first = int(windows[0]) if len(windows) else 0
    places = windows - first
    many = int(places[-1]) + 1 if len(places) else 0
    sizes = np.bincount(places, minlength=many)
    asked = _ask(rows, places, sizes, yardstick, first, np.asarray(sorted(wanted)) - first)
    answers = _Answers(rows, places, yardstick, plan, rules)
    bounds = np.searchsorted(places, np.arange(many + 1))
    moving = before
    for window in sorted(wanted):
        place = window - first
        part = slice(int(bounds[place]), int(bounds[place + 1]))
        total = int(sizes[place])
        head: dict[str, Any] = {
            "start": plan.starts(window), "end": plan.ends(window), "digest": yardstick.digest, "rows": total,
            "answered": int(answers.primary[part].sum()), "version": answers.version(part),
        }  # fmt: skip
        if total < rules.least_rows:
            yield Window(**head, status="no data", reason=f"{total} requests, needs {rules.least_rows}")
            continue
        found = answers.of(part, moving)
        moving = found["moving"] if found["moving"] is not None else moving
        checks, explained = list(found.pop("checks")), None
        if rules.weekly and (window + 1) % SPAN == 0:
            reach = slice(int(bounds[max(0, place - SPAN + 1)]), part.stop)
            more, explained = answers.weekly(reach)
            checks += more
        yield Window(
            **head, **found, status="judged", columns=_results(asked, place), checks=tuple(checks),
            importance=explained,
        )  # fmt: skip


class _Answers:
    """Predictions and latency of one model's requests."""

    def __init__(self, rows: pd.DataFrame, places: Ints, yardstick: Yardstick, plan: Plan, rules: Rules) -> None:
        self._rows, self._windows, self._yardstick, self._rules = rows, rows["window"].to_numpy(), yardstick, rules
        self.primary = rows["role"].eq("primary").to_numpy()
        self._scores = rows["prediction"].to_numpy(dtype=np.float64)
        self._ms = rows["ms.total"].to_numpy(dtype=np.float64)
        scores = yardstick.scores
        # The package keeps means of days; nothing else may be held against them.
        self._law = degradation.mean_law(scores) if scores and plan.length == timedelta(days=1) else None
        self._alike = _alike(yardstick, plan)
        self._explain = importance.explainer(yardstick) if rules.weekly else None
        self._domain: drift_domain.Domain | None = None
        if rules.weekly and not yardstick.sample.empty:
            self._domain = drift_domain.domain(yardstick, _windows(yardstick.sample, plan), SPAN)

    def version(self, part: slice) -> str | None:
        """The version that answered most."""
        known = self._rows["model_version"].iloc[part][self.primary[part]].dropna()
        return str(known.iloc[0]) if len(known) else None

    def of(self, part: slice, moving: float | None) -> dict[str, Any]:
        """Predictions and latency of one window."""
        scores = self._scores[part][self.primary[part]]
        scores = scores[~np.isnan(scores)]
        ms, least = self._ms[part], self._rules.least_rows
        checks = [degradation.latency(ms, self._rules.agreed_ms, least)]
        known = ms[~np.isnan(ms)]
        out: dict[str, Any] = {"p99": float(np.quantile(known, 0.99)) if len(known) else None, "moving": None}
        if len(scores) < least:
            why = f"the primary answered {len(scores)} requests, needs {least}"
            return {**out, "checks": [*checks, *_silent(why)]}
        mean, low = float(scores.mean()), float(((scores > 0.4) & (scores < 0.6)).mean())
        out |= {"mean": mean, "low": low, "histogram": _histogram(scores)}
        if self._yardstick.scores is None or self._law is None:
            why = "the package has no predictions per window of this length"
            return {**out, "checks": [*checks, *_silent(why)]}
        reference = self._yardstick.scores
        out["moving"] = degradation.average(moving, degradation.sigmas(self._law, mean, len(scores)))
        checks += degradation.mean_shift(reference, self._law, mean, len(scores), out["moving"])
        checks.append(degradation.low_confidence(reference, self._alike, low, len(scores)))
        return {**out, "checks": checks}

    def weekly(self, part: slice) -> tuple[list[Check], dict[str, float] | None]:
        """Classifier and contributions over a stretch of windows."""
        names = list(self._yardstick.signature.features)
        if gone := sorted(removed(self._rows.iloc[part]).keys() & set(names)):
            why = f"the log holds no values of {', '.join(gone)} (redacted)"
            return [
                Check("domain", "no data", None, None, why),
                Check("importance", "no data", None, importance.LIMIT, why),
            ], None
        vectors = self._rows.iloc[part][[f"vector.{n}" for n in names if f"vector.{n}" in self._rows]]
        vectors = vectors.rename(columns=lambda name: name.removeprefix("vector."))
        separate = drift_domain.judge(self._domain, self._yardstick, vectors, self._windows[part])
        check, found = importance.judge(self._yardstick, self._explain, vectors[self.primary[part]])
        return [separate, check], found.mean_abs if found else None


def _ask(rows: pd.DataFrame, places: Ints, sizes: Ints, yardstick: Yardstick, first: int, wanted: Ints) -> list[_Asked]:
    out, many = [], len(sizes)
    enough = {span: sums((sizes > 0).astype(np.int64)[:, None], span)[:, 0] for span in SPANS}
    gone = removed(rows)
    for name, column in yardstick.columns.items():
        if name in gone:
            # What is left out of the log on purpose is neither missing nor new.
            continue
        source = name if name == SCORE else f"vector.{name}"
        values = rows[source] if source in rows else pd.Series([None] * len(rows), dtype=object)
        bins = column.bins
        codes = bins.codes(values)
        asked_of = rows["role"].eq("primary").to_numpy() if name == SCORE else np.ones(len(rows), dtype=bool)
        codes = np.where(asked_of, codes, -1)
        fine = tabulate(codes, places, len(bins.coarse), many)
        empty = tabulate((codes < 0).astype(np.int64), places, 2, many)
        new = np.bincount(places[bins.unseen(values)], minlength=many)[:, None]
        for span in SPANS:
            # A stretch cut short, by a promotion or a pause, is not what training's stretches are.
            ready = enough[span] >= min(span, _LEAST_WINDOWS)
            totals = [np.where(ready[:, None], sums(table, span), 0) for table in (fine, empty, new)]
            phases = (np.arange(many) + first) % len(column.stretches[span].nulls)
            out.append(_of(column, span, phases, totals, fine, yardstick.rows))
    _adjust(out, wanted)
    return out


def _of(column: Column, span: int, phases: Ints, totals: list[Ints], single: Ints, trained: int) -> _Asked:
    fine, empty, new = totals
    bins, usual = column.bins, column.stretches[span]
    rows, known, count = empty.sum(axis=1), fine.sum(axis=1), new[:, 0]
    nothing = np.full(len(rows), np.nan)
    shift, shift_p, nulls_p = None, nothing, nothing
    if usual.shift is not None:
        shift = distances(fine, usual.fine[phases], bins, usual.shift, ALPHA)
        shift_p = shift.p_value
        if span > 1:
            # One odd window is told by itself; it does not make the stretches of a week around it odd.
            rest = bins.fold(without_oddest(single, usual.fine, bins, span))
            shift_p = np.maximum(shift_p, compare(rest, bins.fold(usual.fine[phases]), usual.shift, ALPHA)[1])
        shift_p = np.where(known >= np.maximum(usual.shift.least * rows, 1), shift_p, np.nan)
    if span == 1 and usual.empty is not None and bins.name != SCORE:
        nulls_p = np.where(rows > 0, compare(empty, usual.nulls[phases], usual.empty, ALPHA)[1], np.nan)
    unseen_p = stats.binom.sf(count - 1, np.maximum(known, 1), min(1.0, 3 / max(trained, 1)))
    return _Asked(
        column, span, rows, empty[:, 1] / np.maximum(rows, 1), count / np.maximum(known, 1), count, shift, shift_p,
        nulls_p, np.where((count > 0) & bins.is_category & (span == 1), unseen_p, np.nan),
    )  # fmt: skip


def _adjust(asked: list[_Asked], wanted: Ints) -> None:
    """Replace p-values by those after Benjamini and Hochberg, over all columns, spans and questions of a window."""
    for place in wanted:
        if place < 0:
            continue
        values = [p for one in asked for p in (one.shift_p, one.nulls_p, one.unseen_p)]
        found = np.array([p[place] for p in values])
        known = ~np.isnan(found)
        if known.any():
            for p, new in zip(
                [p for p, keep in zip(values, known, strict=True) if keep],
                stats.false_discovery_control(np.clip(found[known], 0, 1)),
                strict=True,
            ):
                p[place] = new


def _results(asked: list[_Asked], place: int) -> tuple[ColumnResult, ...]:
    return tuple(_result(one, place) for one in asked if one.rows[place])


def _result(one: _Asked, place: int) -> ColumnResult:
    name, now, before = one.column.bins.name, float(one.nulls[place]), one.column.null_rate
    shift = one.shift if one.shift and not np.isnan(one.shift_p[place]) else None
    alarms = []
    if shift and one.shift_p[place] <= ALPHA and shift.psi[place] >= LEAST_PSI:
        alarms.append("drift")
    if one.nulls_p[place] <= ALPHA and abs(now - before) >= LEAST_NULLS:
        alarms.append("missing" if now == 1 else "nulls")
    if (
        one.unseen_p[place] <= ALPHA
        and one.unseen[place] >= LEAST_UNSEEN
        and one.unseen_rows[place] >= LEAST_UNSEEN_ROWS
    ):
        alarms.append("new_category")
    psi = size = phi = limit = p_value = row_p = adjusted = None
    if shift:
        psi, size, phi = (float(values[place]) for values in (shift.psi, shift.size, shift.phi))
        limit, p_value, row_p = (float(values[place]) for values in (shift.limit, shift.p_value, shift.row_p))
        adjusted = float(one.shift_p[place])
    return ColumnResult(
        name, one.span, int(one.rows[place]), psi, size, phi, limit, p_value, row_p, adjusted, now, before,
        float(one.unseen[place]), tuple(alarms),
    )  # fmt: skip


def _alike(yardstick: Yardstick, plan: Plan) -> float:
    """How alike the confidence of one window's predictions is, from the sample; 0 when that cannot be told."""
    if SCORE not in yardstick.sample:
        return 0.0
    known = yardstick.sample.dropna(subset=[SCORE])
    low = known[SCORE].between(0.4, 0.6, inclusive="neither").to_numpy()
    found = between(low.astype(np.int64), _windows(known, plan), 2)
    return min(1.0, found.mean) if found else 0.0


def _windows(sample: pd.DataFrame, plan: Plan) -> Ints:
    return micros(sample["event_timestamp"]) // (plan.length // timedelta(microseconds=1))


def _histogram(scores: npt.NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.histogram(scores, bins=_HISTOGRAM, range=(0.0, 1.0))[0])


def _silent(why: str) -> Iterator[Check]:
    rules: Mapping[degradation.Rule, float | None] = {
        "mean_shift": None, "mean_shift_lasting": None, "low_confidence": degradation.LOW_CONFIDENCE,
    }  # fmt: skip
    return (Check(rule, "no data", None, limit, why) for rule, limit in rules.items())
