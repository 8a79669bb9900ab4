"""Puts the windows on one page for people and into one file for machines: ``monitor.html`` and ``monitor.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import orjson

from monitoring.drift_evidently import PAGE as EVIDENTLY
from monitoring.drift_plots import describe, heat_map, series
from monitoring.drift_run import Run
from monitoring.drift_store import Window
from monitoring.drift_yardstick import Scores
from monitoring.performance_page import Told
from monitoring.report import templates, write
from monitoring.windows import Plan

# More windows than this make the picture too wide to read; the JSON lines have them all.
SHOWN = 120
ADVICE = {
    "drift": "ask what changed at the source; if the world did, retrain",
    "nulls": "look at the feed that fills this feature",
    "missing": "the feature is gone: look at its feed and at the online store",
    "new_category": "the model takes unseen values for missing; retrain when they stay",
    "mean_shift": "see which features moved and whether labels confirm it; retrain when they do",
    "mean_shift_lasting": "see which features moved and whether labels confirm it; retrain when they do",
    "low_confidence": "the model cannot tell cases apart any more; look for missing features first",
    "latency": "see the stages in the dashboard and in docs/serving.md",
    "domain": "requests differ from training in several features together",
    "importance": "the model decides by other features than in training",
    "business": "ask who owns the figure",
}


@dataclass(frozen=True)
class Episode:
    """One alarm over consecutive judged windows.

    Attributes:
        name: ``rule`` or ``rule:feature``.
        text: the finding of its last window.
        standing: whether the newest judged window has it.
    """

    name: str
    rule: str
    feature: str
    first: datetime
    last: datetime
    windows: int
    text: str
    standing: bool

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE[self.rule]


@dataclass(frozen=True)
class Facts:
    """Everything the page says."""

    windows: tuple[Window, ...]
    episodes: tuple[Episode, ...]
    notes: tuple[str, ...]
    rows: int
    now: datetime
    scores: Scores | None
    agreed_ms: float
    evidently: bool
    performance: Told = field(default_factory=Told)

    @classmethod
    def of(
        cls, found: Run, plan: Plan, rows: int, notes: tuple[str, ...], evidently: bool, agreed_ms: float = 50.0,
        performance: Told | None = None,
    ) -> Self:  # fmt: skip
        """Gather them."""
        scores = found.latest.scores if found.latest else None
        return cls(
            found.windows, episodes(found.windows), notes, rows, plan.now, scores, agreed_ms, evidently,
            performance or Told(),
        )  # fmt: skip

    @property
    def standing(self) -> tuple[Episode, ...]:
        """Alarms of the newest judged window."""
        return tuple(episode for episode in self.episodes if episode.standing)

    @property
    def newest(self) -> Window | None:
        """The newest judged window."""
        return next((w for w in reversed(self.windows) if w.status == "judged"), None)


def episodes(windows: tuple[Window, ...]) -> tuple[Episode, ...]:
    """Join each alarm's consecutive windows, newest first; a window without data does not end one."""
    running: dict[str, list[Window]] = {}
    done: list[tuple[str, list[Window]]] = []
    for window in (w for w in windows if w.status == "judged"):
        raised = set(window.alarms)
        # Rules of whole stretches are asked only at their ends.
        asked = {c.rule for c in window.checks} | {"drift", "nulls", "missing", "new_category"}
        for name in [n for n in running if n not in raised and n.partition(":")[0] in asked]:
            done.append((name, running.pop(name)))
        for name in window.alarms:
            running.setdefault(name, []).append(window)
    out = [_episode(name, seen, standing=False) for name, seen in done]
    out += [_episode(name, seen, standing=True) for name, seen in running.items()]
    return tuple(sorted(out, key=lambda e: (not e.standing, -e.last.timestamp(), e.first, e.name)))


def write_page(facts: Facts, out: Path) -> Path:
    """Write both files, each in one rename; return the page."""
    write(out / "monitor.json", as_json(facts))
    shown = facts.windows[-SHOWN:]
    page = templates().get_template("monitor.html").render(
        facts=facts, newest=facts.newest, shown=shown, heat=heat_map(shown), evidently=EVIDENTLY,
        plots=series(shown, facts.scores, facts.agreed_ms), quiet=_quiet(facts.newest), models=_models(facts.windows),
        columns=_columns(facts.newest), told=facts.performance,
    )  # fmt: skip
    write(out / "monitor.html", page)
    return out / "monitor.html"


def as_json(facts: Facts) -> str:
    """Return everything as JSON; of earlier windows only the columns in alarm."""
    newest = facts.newest
    whole = {
        "now": facts.now, "rows": facts.rows, "notes": facts.notes,
        "alarms": [{**asdict(episode), "advice": episode.advice} for episode in facts.episodes],
        "windows": [_told(window, window is newest) for window in facts.windows],
        "performance": facts.performance.as_json(),
    }  # fmt: skip
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _told(window: Window, whole: bool) -> dict[str, object]:
    columns = [column for column in window.columns if whole or column.alarms]
    return {**vars(window), "columns": columns, "alarms": window.alarms}


def _episode(name: str, seen: list[Window], *, standing: bool) -> Episode:
    rule, _, feature = name.partition(":")
    last = seen[-1]
    if feature:
        found = [c for c in last.columns if c.feature == feature and rule in c.alarms]
        text = describe(max(found, key=lambda c: c.span))
    else:
        text = next(c.text for c in last.checks if c.rule == rule)
    return Episode(name, rule, feature, seen[0].start, last.end, len(seen), text, standing)


def _quiet(newest: Window | None) -> list[tuple[str, str]]:
    return [(c.rule, c.text) for c in newest.checks if c.outcome == "no data"] if newest else []


def _models(windows: tuple[Window, ...]) -> list[tuple[str, str, datetime, datetime, int]]:
    out: dict[str, tuple[str, str, datetime, datetime, int]] = {}
    for window in windows:
        if window.digest:
            _, _, first, _, rows = out.get(window.digest, ("", "", window.start, window.end, 0))
            out[window.digest] = window.digest, window.version or "?", first, window.end, rows + window.rows
    return list(out.values())


def _columns(newest: Window | None) -> list[tuple[object, object]]:
    """Per column of the newest window the results of one window and of a stretch; None where there is none."""
    if newest is None:
        return []
    names = dict.fromkeys(c.feature for c in newest.columns)
    found = {(c.feature, c.span == 1): c for c in newest.columns}
    return [(found.get((name, True)), found.get((name, False))) for name in names]
