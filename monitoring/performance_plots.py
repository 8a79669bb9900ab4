"""The picture of performance over time: what was estimated, and what came true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from monitoring.performance_run import SPANS, Stretch
from monitoring.plots import COLOURS, date_axis, draw, finish

TITLES = {"auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "accuracy": "right at 0.5"}
_LEAST, _MOST = 4, 60


def shown(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """The primary's stretches to show: weeks when there are several, else single windows."""
    for span in (SPANS[1], SPANS[0]):
        found = [s for s in stretches if s.span == span and s.role == "primary"]
        if sum(bool(s.estimated or s.realized) for s in found) >= _LEAST or span == SPANS[0]:
            return tuple(found[-_MOST:])
    return ()


def pictures(stretches: Sequence[Stretch]) -> dict[str, Markup]:
    """Draw AUC and log loss over time; empty where fewer than two stretches have data."""
    found = shown(stretches)
    return {name: Markup(_over_time(found, name)) for name in ("auc", "log_loss")}


def _over_time(stretches: Sequence[Stretch], measure: str) -> str:
    guessed = [s for s in stretches if measure in s.estimated]
    true = [s for s in stretches if measure in s.realized]

    def paint(axes: Any) -> None:
        for digest in dict.fromkeys(s.digest for s in guessed):
            own = [s for s in guessed if s.digest == digest]
            at = [_middle(s) for s in own]
            bounds = [s.estimated[measure] for s in own]
            lows = [b[0] if b[1] is None else b[1] for b in bounds]
            highs = [b[0] if b[2] is None else b[2] for b in bounds]
            axes.fill_between(at, lows, highs, color=COLOURS["shadow"], alpha=0.15, linewidth=0)
            axes.plot(at, [b[0] for b in bounds], color=COLOURS["shadow"], linewidth=1.3)
        doubted = [s for s in guessed if not s.trusted]
        axes.plot(
            [_middle(s) for s in doubted], [s.estimated[measure][0] for s in doubted], "o", markersize=5,
            markerfacecolor=COLOURS["page"], markeredgecolor=COLOURS["shadow"],
        )  # fmt: skip
        for one in true:
            value, low, high = one.realized[measure]
            if low is not None and high is not None:
                axes.plot([_middle(one)] * 2, [low, high], color=COLOURS["primary"], linewidth=1, alpha=0.5)
            axes.plot([_middle(one)], [value], "o", color=COLOURS["primary"], markersize=3.5)
        finish(axes, x="", y=TITLES[measure])
        date_axis(axes)

    label = f"Estimated and realized {TITLES[measure]} over time"
    return draw(f"performance-{measure}", paint, label) if max(len(guessed), len(true)) > 1 else ""


def _middle(one: Stretch) -> Any:
    return one.start + (one.end - one.start) / 2
