"""The pictures of a run, drawn from the baseline that travels with the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

_BLUE, _GREY = "#2f6f9f", "#888888"
_SHOWN = 20


def pictures(baseline: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw every picture the baseline has data for, by name."""
    predictions, ranking = baseline["predictions"], baseline.get("importance", {}).get("ranking")
    drawn: dict[str, Figure] = {}
    if "calibration" in predictions:
        drawn["calibration"] = _calibration(predictions)
    if "counts" in predictions:
        drawn["scores"] = _scores(predictions)
    if ranking:
        drawn["importance"] = _importance(baseline["importance"])
    return drawn


def _calibration(predictions: Mapping[str, Any]) -> Figure:
    parts = predictions["calibration"]
    figure, axes = _empty("Calibration in the evaluation weeks", "mean score", "rate of positives")
    most = 1.05 * max(max(p["score"], p["rate"]) for p in parts) or 1.0
    axes.plot([0, most], [0, most], color=_GREY, linewidth=1, linestyle="--", label="calibrated")
    axes.plot([p["score"] for p in parts], [p["rate"] for p in parts], color=_BLUE, marker="o", label="model")
    for part in parts:
        at = (part["score"], part["rate"])
        axes.annotate(f"{part['rows']:,.0f}", at, xytext=(5, -11), textcoords="offset points", fontsize=7, color=_GREY)
    axes.legend(frameon=False, title="rows beside each point", title_fontsize=7)
    return figure


def _scores(predictions: Mapping[str, Any]) -> Figure:
    edges, counts = predictions["edges"], predictions["counts"]
    figure, axes = _empty("Scores in the evaluation weeks", "score", "rows")
    axes.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=_BLUE, edgecolor="white")
    axes.axvline(predictions["mean"], color=_GREY, linestyle="--", linewidth=1, label=f"mean {predictions['mean']:.3f}")
    axes.legend(frameon=False)
    return figure


def _importance(importance: Mapping[str, Any]) -> Figure:
    shown = importance["ranking"][:_SHOWN]
    axis = f"mean |contribution|, {importance['unit']} ({importance['method']}, {importance['rows']:,} rows)"
    figure, axes = _empty("What the model goes by", axis, "", 1.2 + 0.2 * len(shown))
    axes.barh([entry["feature"] for entry in shown], [entry["mean_abs"] for entry in shown], color=_BLUE)
    axes.invert_yaxis()
    return figure


def _empty(title: str, across: str, up: str, height: float = 3.6) -> tuple[Figure, Any]:
    # Not pyplot, which keeps every figure and a backend for the process.
    figure = Figure(figsize=(6, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
