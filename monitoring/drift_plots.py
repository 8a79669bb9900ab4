"""The pictures of the monitoring page: a heat map of all columns, and what became of the predictions over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from markupsafe import Markup

from monitoring.degradation import LOW_CONFIDENCE, average_limit, mean_law, sigma_limit
from monitoring.drift_store import ColumnResult, Window
from monitoring.drift_yardstick import Scores
from monitoring.importance import LIMIT as LEAST_AGREEMENT
from monitoring.plots import COLOURS, date_axis, draw, finish

_CELL, _ROW, _LEFT, _TOP = 7, 15, 168, 18


def heat_map(windows: Sequence[Window]) -> Markup:
    """Draw columns against windows: how far off each is, in shares of its own limit."""
    names = list(dict.fromkeys(c.feature for window in windows for c in window.columns))
    many = max(len(windows), 1)
    width, height = _LEFT + many * _CELL, _TOP + len(names) * _ROW + 4
    places = {name: y for y, name in enumerate(names)}
    paths: dict[str, list[str]] = {}
    alarms: list[str] = []
    for x, window in enumerate(windows):
        worst: dict[str, tuple[str, ColumnResult]] = {}
        for column in window.columns:
            level = _level(column)
            if column.feature not in worst or level > worst[column.feature][0]:
                worst[column.feature] = level, column
        for name, (level, column) in worst.items():
            left, top = _LEFT + x * _CELL, _TOP + places[name] * _ROW
            if level == "h4":
                text = escape(f"{name}, {window.start:%-d %b %Y}: {describe(column)}")
                alarms.append(
                    f'<rect class="h4" x="{left}" y="{top}" width="{_CELL - 1}" height="{_ROW - 2}">'
                    f"<title>{text}</title></rect>"
                )
            else:
                paths.setdefault(level, []).append(f"M{left} {top}h{_CELL - 1}v{_ROW - 2}h-{_CELL - 1}z")
        if not window.columns:
            paths.setdefault("h0", []).append(f"M{_LEFT + x * _CELL} {_TOP}h1v{len(names) * _ROW}h-1z")
    body = [f'<path class="{level}" d="{"".join(d)}"/>' for level, d in sorted(paths.items())]
    body += [
        f'<text x="{_LEFT - 8}" y="{_TOP + y * _ROW + 10}" text-anchor="end">{escape(name)}</text>'
        for name, y in places.items()
    ]
    body += _marks(windows, height)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" style="min-width:{min(width, 760)}px" role="img" class="heat" '
        f'aria-label="Drift per column and window">{"".join(body)}{"".join(alarms)}</svg>'
    )


def describe(column: ColumnResult) -> str:
    """Say in a few words what is unusual about a column."""
    over = "" if column.span == 1 else f" over {column.span} windows"
    parts = []
    if "drift" in column.alarms and column.psi is not None and column.phi is not None and column.limit is not None:
        parts.append(f"PSI {column.psi:.2f}{over}, distance {column.phi / max(column.limit, 1e-9):.1f} times its limit")
    if {"nulls", "missing"} & set(column.alarms):
        parts.append(f"null in {column.null_rate:.1%}{over}, in training {column.null_before:.1%}")
    if "new_category" in column.alarms:
        parts.append(f"{column.unseen:.1%} of values{over} are categories that training never had")
    return "; ".join(parts)


def series(windows: Sequence[Window], scores: Scores | None, agreed_ms: float) -> dict[str, Markup]:
    """Draw every picture by name; empty where there is no data."""
    judged = [window for window in windows if window.status == "judged"]
    drawn = {
        "mean": _mean(judged, scores),
        "distribution": _distribution(judged),
        "low": _line(judged, [w.low for w in judged], "low", "share between 0.4 and 0.6", LOW_CONFIDENCE),
        "p99": _line(judged, [w.p99 for w in judged], "p99", "p99, milliseconds", agreed_ms),
        "answered": _line(
            judged, [1 - w.answered / max(w.rows, 1) for w in judged], "answered", "share not answered by primary", None
        ),
        "importance": _line(
            judged, [_value(w, "importance") for w in judged], "importance", "nDCG of importance", LEAST_AGREEMENT
        ),
        "domain": _line(judged, [_value(w, "domain") for w in judged], "domain", "AUC of the classifier", None),
        "business": _line(judged, [w.business for w in judged], "business", "business figure", None),
    }
    return {name: Markup(svg) for name, svg in drawn.items()}


def _level(column: ColumnResult) -> str:
    if column.alarms:
        return "h4"
    if column.phi is None or not column.limit:
        return "h1"
    share = column.phi / column.limit
    return "h1" if share < 0.5 else "h2" if share < 1 else "h3"


def _marks(windows: Sequence[Window], height: int) -> list[str]:
    """Names of months, and a line where another model took over."""
    out: list[str] = []
    digest: str | None = None
    for x, window in enumerate(windows):
        left = _LEFT + x * _CELL
        if (window.start.day == 1 and window.start.hour == 0) or x == 0:
            shown = f"{window.start:%b %Y}" if x == 0 or window.start.month == 1 else f"{window.start:%b}"
            if (x == 0 and any(w.start.day == 1 for w in windows[1:10])) or (x and x > len(windows) - 5):
                shown = ""
            out.append(f'<text x="{left}" y="11">{shown}</text>')
        if window.digest and digest and window.digest != digest:
            out.append(f'<path class="moved" d="M{left - 0.5} {_TOP - 4}V{height}"/>')
        digest = window.digest or digest
    return out


def _mean(judged: Sequence[Window], scores: Scores | None) -> str:
    at = [w.start for w in judged if w.mean is not None]
    values = np.array([w.mean for w in judged if w.mean is not None])
    law = mean_law(scores) if scores else None

    def paint(axes: Any) -> None:
        if law is not None:
            bounds = law.centre + law.spread * sigma_limit(law) * np.array([-1, 1])
            inner = law.centre + law.spread * average_limit(law) * np.array([-1, 1])
            for low, high in (1 / (1 + np.exp(-bounds)), 1 / (1 + np.exp(-inner))):
                axes.axhspan(low, high, color=COLOURS["good"], alpha=0.1, linewidth=0)
        axes.plot(at, values, color=COLOURS["primary"], linewidth=1.3)
        off = [i for i, w in enumerate(w for w in judged if w.mean is not None) if _is_shift(w)]
        axes.plot([at[i] for i in off], values[off], "o", color=COLOURS["bad"], markersize=4)
        finish(axes, x="", y="mean prediction")
        axes.set_ylim(bottom=0)
        date_axis(axes)

    return draw("mean", paint, "Mean prediction per window") if len(at) > 1 else ""


def _distribution(judged: Sequence[Window]) -> str:
    shown = [w for w in judged if sum(w.histogram)]

    def paint(axes: Any) -> None:
        at = [w.start for w in shown]
        counts = np.array([w.histogram for w in shown], dtype=float)
        total = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
        edges = np.linspace(0, 1, counts.shape[1] + 1)
        quantiles = {
            q: np.array([np.interp(q, [0, *row], edges) for row in total]) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
        }
        for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3)):
            axes.fill_between(at, quantiles[low], quantiles[high], color=COLOURS["primary"], alpha=alpha, linewidth=0)
        axes.plot(at, quantiles[0.5], color=COLOURS["primary"], linewidth=1.3)
        axes.set_ylim(0, 1)
        finish(axes, x="", y="prediction: 5, 25, 50, 75, 95 %")
        date_axis(axes)

    return draw("distribution", paint, "Distribution of predictions per window") if len(shown) > 1 else ""


def _line(judged: Sequence[Window], values: Sequence[float | None], name: str, label: str, limit: float | None) -> str:
    at = [w.start for w, value in zip(judged, values, strict=True) if value is not None]
    known = [value for value in values if value is not None]

    def paint(axes: Any) -> None:
        axes.plot(at, known, color=COLOURS["primary"], linewidth=1.3, marker="o" if len(at) < 30 else "", markersize=3)
        if limit is not None:
            axes.axhline(limit, color=COLOURS["bad"], linewidth=1, linestyle=(0, (4, 3)))
        finish(axes, x="", y=label)
        if name not in ("importance", "domain", "business"):
            axes.set_ylim(bottom=0)
        date_axis(axes)

    return draw(name, paint, label, 2.1) if len(at) > 1 else ""


def _is_shift(window: Window) -> bool:
    return any(c.rule.startswith("mean_shift") and c.outcome == "alarm" for c in window.checks)


def _value(window: Window, rule: str) -> float | None:
    return next((check.value for check in window.checks if check.rule == rule), None)
