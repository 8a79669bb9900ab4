"""The pictures of a split's page, drawn like those of the comparison page."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitoring.plots import COLOURS, date_axis, draw, finish
from monitoring.split_evidence import Point, SplitEvidence
from monitoring.split_verdict import PROMOTES


def split_plots(evidence: SplitEvidence) -> dict[str, str]:
    """Draw every picture there is data for, by name."""
    drawn: dict[str, str] = {}
    settled = [p for p in evidence.path if p.low is not None and p.high is not None]
    if settled:
        drawn["effect"] = draw("effect", lambda axes: _effect(axes, settled), "Effect of treatment over time")
    if evidence.path:
        drawn["evidence"] = draw("evidence", lambda axes: _gain(axes, evidence.path), "Evidence for a gain over time")
    if any(day.difference is not None for day in evidence.days):
        drawn["days"] = draw("days", lambda axes: _days(axes, evidence), "Difference of the arms by day")
    return drawn


def _effect(axes: Any, points: list[Point]) -> None:
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.9)
    at = [p.at for p in points]
    low, high = np.array([p.low for p in points], float), np.array([p.high for p in points], float)
    axes.fill_between(at, low, high, color=COLOURS["shadow"], alpha=0.18, linewidth=0)
    axes.plot(at, [p.difference for p in points], color=COLOURS["shadow"], linewidth=1.6)
    # The first intervals are so wide that the later ones would be lines.
    settled = slice(len(points) // 10, None)
    reach = 1.1 * max(float(np.abs(low[settled]).max()), float(np.abs(high[settled]).max()), 1e-12)
    axes.set_ylim(-reach, reach)
    date_axis(axes)
    finish(axes, x="", y="treatment \u2212 control")


def _gain(axes: Any, path: tuple[Point, ...]) -> None:
    # What is far below 1 or far above 20 is at the edge.
    shown = np.clip([p.gain for p in path], 0.01, 1e4)
    axes.plot([p.at for p in path], shown, color=COLOURS["shadow"], linewidth=1.6)
    axes.axhline(PROMOTES, color=COLOURS["good"], linewidth=1.0, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{PROMOTES:.0f}: enough", (0, PROMOTES), (4, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=COLOURS["good"],
    )  # fmt: skip
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.05), max(high, 60))
    date_axis(axes)
    finish(axes, x="", y="e-value")


def _days(axes: Any, evidence: SplitEvidence) -> None:
    days = [d for d in evidence.days if d.difference is not None]
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.9)
    most = max(min(d.control, d.treatment) for d in days)
    sizes = [12 + 60 * min(d.control, d.treatment) / most for d in days]
    axes.scatter([d.day for d in days], [d.difference for d in days], s=sizes, color=COLOURS["shadow"], alpha=0.75,
                 linewidths=0)  # fmt: skip
    if evidence.difference is not None:
        axes.axhline(evidence.difference, color=COLOURS["shadow"], linewidth=1.0, linestyle=(0, (4, 3)))
    date_axis(axes)
    finish(axes, x="", y="treatment \u2212 control")
