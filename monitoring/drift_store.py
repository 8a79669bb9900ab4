"""What was found about each window, one JSON line per window and model: ``<state>/monitoring/windows.jsonl``.

A window that is over is judged once. Its line stays as it is, also when the log's segments have been deleted since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson

from monitoring.degradation import Check
from monitoring.report import write
from service.clock import parse_instant

FILE = "windows.jsonl"


Key = tuple[datetime, datetime, str | None]


@dataclass(frozen=True)
class ColumnResult:
    """One column over one span of windows.

    Attributes:
        span: windows taken together, this one the last.
        psi, size: effect sizes; size is the Kolmogorov-Smirnov distance, for categories Cramer's V.
        phi, limit: Pearson's phi-square, and the value that one stretch of training in 500 exceeds.
        p_value: against training's own stretches; ``row_p`` as if rows were independent.
        adjusted: the p-value after control of the false discovery rate over everything asked of this window.
        null_rate, null_before: share without a value, now and in training.
        unseen: share of categories that training never had.
        alarms: of ``drift``, ``nulls``, ``missing``, ``new_category``.
    """

    feature: str
    span: int
    rows: int
    psi: float | None
    size: float | None
    phi: float | None
    limit: float | None
    p_value: float | None
    row_p: float | None
    adjusted: float | None
    null_rate: float
    null_before: float
    unseen: float
    alarms: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """One window of the clock and the model that was primary in it.

    Attributes:
        digest, version: of that model; None when nothing was answered.
        rows: requests; ``answered``: those the primary answered.
        status: ``judged``, or ``no data`` with the ``reason``.
        mean, low, p99: mean prediction, share between 0.4 and 0.6, 99th percentile of an answer's milliseconds.
        histogram: predictions in twenty equal bins from 0 to 1.
        moving: moving average of the mean's distance, in standard deviations.
        importance: mean absolute contribution per feature, at the end of a stretch.
    """

    start: datetime
    end: datetime
    digest: str | None
    version: str | None
    rows: int
    answered: int
    status: Literal["judged", "no data"]
    reason: str = ""
    columns: tuple[ColumnResult, ...] = ()
    checks: tuple[Check, ...] = ()
    mean: float | None = None
    low: float | None = None
    p99: float | None = None
    histogram: tuple[int, ...] = ()
    moving: float | None = None
    importance: Mapping[str, float] | None = None
    business: float | None = None

    @property
    def key(self) -> Key:
        """What makes it one window and not another."""
        return self.start, self.end, self.digest

    @property
    def alarms(self) -> tuple[str, ...]:
        """Every alarm as ``rule`` or ``rule:feature``, each once."""
        found = [f"{kind}:{column.feature}" for column in self.columns for kind in column.alarms]
        found += [check.rule for check in self.checks if check.outcome == "alarm"]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Stored:
    """The windows in the file, and its lines that could not be read."""

    windows: tuple[Window, ...]
    damaged_lines: int


def read_windows(folder: Path) -> Stored:
    """Read the file; one that is not there has no windows. Of two lines for a window the later counts."""
    try:
        lines = (folder / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return Stored((), 0)
    found: dict[Key, Window] = {}
    damaged = 0
    for line in lines:
        try:
            window = _window(orjson.loads(line))
            found[window.key] = window
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += 1
    return Stored(tuple(sorted(found.values(), key=_order)), damaged)


def write_windows(folder: Path, windows: Iterable[Window]) -> None:
    """Replace the file by these windows, in one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps(window, option=orjson.OPT_APPEND_NEWLINE) for window in sorted(windows, key=_order)]
    write(folder / FILE, b"".join(lines).decode())


def of_length(windows: Iterable[Window], length: timedelta) -> tuple[Window, ...]:
    """The windows of one length, in order of time."""
    return tuple(sorted((w for w in windows if w.end - w.start == length), key=_order))


def _order(window: Window) -> tuple[datetime, timedelta, str]:
    return window.start, window.end - window.start, window.digest or ""


_FIELDS = frozenset(field.name for field in fields(Window))


def _window(line: dict[str, Any]) -> Window:
    parts = {name: value for name, value in line.items() if name in _FIELDS}
    parts["start"], parts["end"] = parse_instant(line["start"]), parse_instant(line["end"])
    parts["columns"] = tuple(ColumnResult(**{**c, "alarms": tuple(c["alarms"])}) for c in line["columns"])
    parts["checks"] = tuple(Check(**check) for check in line["checks"])
    parts["histogram"] = tuple(line["histogram"])
    return Window(**parts)
