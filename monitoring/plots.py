"""The pictures of the comparison page, as SVG text that takes its colours from the page.

Everything is drawn in placeholder colours that are then replaced by CSS variables, so that one picture fits a
light and a dark page; text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.dates
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from monitoring.evidence import Evidence
from monitoring.quality import Performance, Slice

COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "primary": "#040404",
    "shadow": "#050505",
    "good": "#060606",
    "bad": "#070707",
    "page": "#080808",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "understudy",
    "font.size": 9,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
}
_MOST_SLICES = 24
# The e-value that promotes, drawn as a line.
PROMOTES = 20.0


def plots(evidence: Evidence) -> dict[str, str]:
    """Draw every picture the evidence has data for, by name."""
    found = evidence.performance
    drawn: dict[str, str] = {}
    if evidence.scores:
        drawn["scores"] = draw("scores", lambda axes: _scores(axes, evidence), "Distribution of both roles' scores")
    if evidence.latency:
        drawn["latency"] = draw("latency", lambda axes: _latency(axes, evidence), "Latency of both roles", 1.7)
    kinds = 1 + len(evidence.ledger.dropped) + bool(evidence.ledger.unaccounted)
    drawn["ledger"] = draw(
        "ledger", lambda axes: _ledger(axes, evidence), "What became of the sampled requests", 0.55 + 0.3 * kinds
    )
    if found:
        if any(point.low is not None for point in found.running):
            drawn["running"] = draw("running", lambda axes: _running(axes, found), "Log-loss gain over time")
        drawn["evidence"] = draw("evidence", lambda axes: _evidence(axes, found), "Evidence for a gain over time")
        drawn["calibration"] = draw("calibration", lambda axes: _calibration(axes, found), "Calibration of both roles")
        if found.slices:
            shown = min(len(found.slices), _MOST_SLICES)
            drawn["slices"] = draw(
                "slices", lambda axes: _slices(axes, found.slices), "Log-loss gain by slice", 0.7 + 0.22 * shown
            )
    return drawn


def draw(name: str, paint: Callable[[Any], None], label: str, height: float = 2.9) -> str:
    """Paint one picture, 4.9 inches wide and ``height`` inches high."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.9, height), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(length=3)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue(), name, label)


def _for_page(svg: str, name: str, label: str) -> str:
    """Cut the SVG down to its element, with the page's colours and font and ids that no other picture has."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for variable, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", svg)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg).replace("url(#", f"url(#{name}-")
    opening = re.sub(r' (width|height|xmlns(:xlink)?|version)="[^"]*"', "", svg[: svg.index(">")])
    body = (
        svg[svg.index(">") :]
        .replace("xlink:href", "href")
        .replace("*{stroke-linejoin", f"#plot-{name} *{{stroke-linejoin")
    )
    return f'{opening} id="plot-{name}" role="img" aria-label="{label}"{body}'


def _scores(axes: Any, evidence: Evidence) -> None:
    assert evidence.scores is not None
    histogram = evidence.scores.histogram
    for role, counts in (("primary", histogram.primary), ("shadow", histogram.shadow)):
        shares = 100 * np.asarray(counts) / max(1, sum(counts))
        axes.stairs(shares, histogram.edges, color=COLOURS[role], linewidth=1.6, label=role)
        axes.stairs(shares, histogram.edges, color=COLOURS[role], fill=True, alpha=0.12)
    finish(axes, x="score", y="% of requests")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    _legend(axes, "upper right")


def _calibration(axes: Any, found: Performance) -> None:
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
    for role, marker in (("primary", "o"), ("shadow", "s")):
        bins = [b for b in found.calibration if b.role == role]
        x, y = [b.mean_score for b in bins], [b.positive_share for b in bins]
        axes.plot(x, y, color=COLOURS[role], marker=marker, markersize=4, linewidth=1.4, label=role)
    top = 1.05 * max(max(b.mean_score, b.positive_share) for b in found.calibration)
    axes.set(xlim=(0, min(1, top)), ylim=(0, min(1, top)))
    finish(axes, x=f"mean score (each point {found.calibration[0].rows:,} rows)", y="observed share")
    _legend(axes, "upper left")


def _running(axes: Any, found: Performance) -> None:
    points = [p for p in found.running if p.low is not None and p.high is not None]
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.9)
    at = [p.at for p in points]
    low, high = np.array([p.low for p in points], float), np.array([p.high for p in points], float)
    axes.fill_between(at, low, high, color=COLOURS["shadow"], alpha=0.18, linewidth=0)
    marker = "o" if len(points) <= 60 else ""
    axes.plot(at, [p.value for p in points], color=COLOURS["shadow"], linewidth=1.8, marker=marker, markersize=2.5)
    # The first blocks' intervals are so wide that they would hide everything after them.
    settled = slice(min(3, len(points) - 1), None)
    bottom, top = min(0.0, float(low[settled].min())), max(0.0, float(high[settled].max()))
    margin = 0.08 * max(top - bottom, 1e-6)
    axes.set_ylim(bottom - margin, top + margin)
    finish(axes, x="", y="gain, nats per request")
    date_axis(axes)


def _evidence(axes: Any, found: Performance) -> None:
    """The e-value on a scale of powers; what is below 1/100 or above 10,000 is at the edge."""
    at = [p.at for p in found.running]
    shown = np.clip([p.e_value for p in found.running], 0.01, 1e4)
    axes.axhline(PROMOTES, color=COLOURS["good"], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{PROMOTES:g} promotes", (at[0], PROMOTES), (2, 3), textcoords="offset points", color=COLOURS["good"]
    )
    axes.axhline(1, color=COLOURS["muted"], linewidth=0.9)
    axes.plot(at, shown, color=COLOURS["shadow"], linewidth=1.8, marker="o" if len(at) <= 60 else "", markersize=2.5)
    axes.set_yscale("log")
    axes.set_ylim(min(0.05, 0.7 * shown.min()), max(60.0, 1.6 * shown.max()))
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.minorticks_off()
    finish(axes, x="", y="e-value")
    date_axis(axes)


def date_axis(axes: Any) -> None:
    """Mark three to six dates along the bottom."""
    locator = mpl.dates.AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mpl.dates.ConciseDateFormatter(locator))


def _slices(axes: Any, slices: tuple[Slice, ...]) -> None:
    worst = sorted(slices, key=lambda s: s.difference.value)[:_MOST_SLICES]
    shown = [entry for entry in slices if entry in worst]
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.9)
    for y, entry in enumerate(shown):
        low, high = entry.joint_low, entry.joint_high
        harmed = entry.harmed
        helped = low is not None and low > 0
        colour = COLOURS["bad"] if harmed else COLOURS["good"] if helped else COLOURS["muted"]
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=1.4, solid_capstyle="round")
        axes.plot(entry.difference.value, y, marker="o", markersize=4.5, color=colour)
    axes.set_yticks(range(len(shown)), [f"{s.column} {s.value}" for s in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    finish(axes, x="gain, nats per request", y="", grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _latency(axes: Any, evidence: Evidence) -> None:
    names = {"primary": "primary", "shadow": "shadow, all calls", "shadow_single": "shadow, 1 row"}
    shown = [entry for entry in evidence.latency if entry.name in names]
    for y, entry in enumerate(shown):
        colour = COLOURS["primary" if entry.name == "primary" else "shadow"]
        axes.plot([entry.p50, entry.p99], [y, y], color=colour, linewidth=1.4, alpha=0.5)
        for percentile, value, size in (("p50", entry.p50, 7), ("p95", entry.p95, 5.5), ("p99", entry.p99, 4)):
            axes.plot(value, y, marker="o", markersize=size, color=colour)
            if y == 0:
                axes.annotate(
                    percentile, (value, y), (0, 7), textcoords="offset points", ha="center", color=COLOURS["muted"]
                )
    axes.set_yticks(range(len(shown)), [names[entry.name] for entry in shown])
    axes.set_ylim(len(shown) - 0.5, -0.8)
    axes.set_xlim(left=0)
    finish(axes, x="milliseconds", y="", grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _ledger(axes: Any, evidence: Evidence) -> None:
    ledger = evidence.ledger
    entries = [("scored", ledger.scored, "good"), *((r.replace("_", " "), n, "bad") for r, n in ledger.dropped.items())]
    if ledger.unaccounted:
        entries.append(("unaccounted", ledger.unaccounted, "bad"))
    for y, (_, count, colour) in enumerate(entries):
        axes.barh(y, count, color=COLOURS[colour], height=0.55)
        share = count / ledger.sampled if ledger.sampled else 0.0
        axes.annotate(f"{count:,}  ({share:.2%})", (count, y), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(entries)), [name for name, _, _ in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * max(1, ledger.scored, *ledger.dropped.values(), ledger.unaccounted))
    axes.set_xticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def finish(axes: Any, *, x: str, y: str, grid: str = "y") -> None:
    """Name both axes and draw grid lines across one of them."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, color=COLOURS["grid"], linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Any, where: str) -> None:
    axes.legend(frameon=False, loc=where, labelcolor=COLOURS["muted"], handlelength=1.4)
