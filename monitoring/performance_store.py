"""What was measured of each stretch, one JSON line each: ``<state>/monitoring/performance.jsonl``; and its series.

Labels come late and are corrected, so stretches are measured anew for as long as the log has their requests; of what
the log no longer has, the last measurement stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.performance_run import SPANS, Stretch, Value
from monitoring.report import write
from service.clock import parse_instant

FILE, SERIES = "performance.jsonl", "performance.prom"
_FIELDS = frozenset(field.name for field in fields(Stretch))


def read_stretches(folder: Path) -> tuple[tuple[Stretch, ...], int]:
    """Read the file; one that is not there has none. Also returns how many of its lines could not be read."""
    try:
        lines = (folder / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return (), 0
    found, damaged = [], 0
    for line in lines:
        try:
            found.append(_stretch(orjson.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += 1
    return tuple(found), damaged


def merged(before: Iterable[Stretch], now: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Put new measurements in the place of old ones, unless the old one rests on more requests."""
    found = {one.key: one for one in before}
    for one in now:
        old = found.get(one.key)
        if old is None or old.rows <= one.rows or old.length != one.length:
            found[one.key] = one
    return tuple(sorted(found.values(), key=lambda s: (s.start, s.span, s.digest or "", s.role)))


def write_stretches(folder: Path, stretches: Iterable[Stretch]) -> None:
    """Replace the file, in one rename."""
    lines = [orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in stretches]
    write(folder / FILE, b"".join(lines).decode())


def newest(stretches: Iterable[Stretch], span: int, *, truth: bool) -> Stretch | None:
    """The primary's newest stretch of a length that has truth, or an estimate."""
    return max(
        (s for s in stretches if s.span == span and s.role == "primary" and (s.realized if truth else s.estimated)),
        key=lambda s: s.end, default=None,
    )  # fmt: skip


def write_series(folder: Path, stretches: Iterable[Stretch]) -> None:
    """Write the newest of each length as Prometheus series; what has no data has no series."""
    kept = tuple(stretches)
    registry = CollectorRegistry()
    labels = ["measure", "windows"]
    gauges = {
        True: Gauge("understudy_realized", "Performance by the truth, newest stretch.", labels, registry=registry),
        False: Gauge("understudy_estimated", "Performance estimated without truth.", labels, registry=registry),
    }
    for span in SPANS:
        for truth, series in gauges.items():
            one = newest(kept, span, truth=truth)
            for name, (value, _, _) in (one.realized if truth else one.estimated).items() if one else ():
                series.labels(name, str(span)).set(value)
    last = newest(kept, SPANS[0], truth=False)
    if last:
        text = "Whether the newest window's estimate can be trusted (1)."
        Gauge("understudy_estimate_trusted", text, registry=registry).set(float(bool(last.trusted)))
    drift = max((s for s in kept if s.evidence is not None), key=lambda s: s.end, default=None)
    if drift and drift.evidence is not None:
        text = "Evidence that truth has left the estimate; one false alarm in 500 windows at 500."
        Gauge("understudy_concept_drift_evidence", text, registry=registry).set(drift.evidence)
    write_to_textfile(str(folder / SERIES), registry)


def _stretch(line: dict[str, Any]) -> Stretch:
    parts = {name: value for name, value in line.items() if name in _FIELDS}
    parts["start"], parts["end"] = (parse_instant(line[name]) for name in ("start", "end"))
    for name in ("realized", "estimated"):
        parts[name] = {measure: _value(value) for measure, value in line[name].items()}
    return Stretch(**parts)


def _value(plain: list[Any]) -> Value:
    value, low, high = plain
    return float(value), None if low is None else float(low), None if high is None else float(high)
