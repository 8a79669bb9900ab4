"""Judges each of the seven ways in which models fail in production, from what was measured. Pure.

Names and order are those of the README's table of failure modes. A measurement that is missing, damaged or too old is
``no data``, never ``ok``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from monitoring.drift_store import Window
from monitoring.gap import THRESHOLD
from monitoring.performance_run import Stretch
from service.clock import parse_instant

State = Literal["ok", "attention", "alarm", "no data"]
# The limits of the alerts of the same names.
STALE_MOST, MISSING_MOST, FALLBACK_MOST = 0.05, 0.05, 0.1
_NEAR = 0.8
_INPUT = ("drift", "nulls", "missing", "new_category")
_OUTPUT = ("mean_shift", "mean_shift_lasting", "low_confidence", "importance", "business")


@dataclass(frozen=True)
class Source:
    """One JSON file: ``data`` is None when it is missing or damaged, and ``why`` says which."""

    name: str
    data: Mapping[str, Any] | None = None
    why: str = ""


@dataclass(frozen=True)
class Played:
    """The package in a role: its record, or ``why`` it cannot be trusted."""

    role: str
    version: str
    digest: str
    record: Mapping[str, Any] | None
    why: str = ""


@dataclass(frozen=True)
class Traffic:
    """The newest day of the prediction log, up to ``last``: requests, and of them how many had what."""

    last: datetime
    rows: int
    stale: int
    missing: int
    future: int
    fallback: int
    unanswered: int


@dataclass(frozen=True)
class Measured:
    """What the tiles rest on.

    Attributes:
        skew: ``skew.json``.
        windows, windows_why: of the monitor, and what was wrong with their file.
        stretches: of realized and estimated performance.
        played: of the seated roles; ``roles_why`` when they cannot be read.
        traffic: None without predictions; ``traffic_why`` says why.
    """

    skew: Source = Source("skew.json", None, "missing")
    windows: tuple[Window, ...] = ()
    windows_why: str = ""
    stretches: tuple[Stretch, ...] = ()
    played: tuple[Played, ...] = ()
    roles_why: str = ""
    traffic: Traffic | None = None
    traffic_why: str = ""


@dataclass(frozen=True)
class Tile:
    """One failure mode.

    Attributes:
        number, limit: in words, with units.
        measured: the newest moment the measurement covers; ``age`` by the clock.
        link: page it rests on, beside the status page; "" without one.
    """

    name: str
    title: str
    state: State
    number: str
    limit: str
    detail: str
    measured: datetime | None
    age: timedelta | None = None
    link: str = ""
    command: str = ""


@dataclass(frozen=True)
class Status:
    """All seven, at a moment of the clock."""

    now: datetime
    tiles: tuple[Tile, ...] = field(default=())

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the tiles in alarm."""
        return tuple(tile.name for tile in self.tiles if tile.state == "alarm")


def status(measured: Measured, now: datetime, stale: timedelta) -> Status:
    """Judge the seven.

    Args:
        now: by the clock.
        stale: age from which a measurement no longer counts.
    """
    found = (
        _skew(measured), _drift(measured), _features(measured), _latency(measured), _degradation(measured),
        _reproducible(measured, now), _fallback(measured),
    )  # fmt: skip
    return Status(now, tuple(_aged(tile, now, stale) for tile in found))


def _aged(tile: Tile, now: datetime, stale: timedelta) -> Tile:
    if tile.measured is None:
        return tile
    age = now - tile.measured
    shown = {**vars(tile), "age": age}
    if age < -timedelta(hours=1) and tile.state != "no data":
        why = f"measured at {tile.measured:%Y-%m-%d %H:%M}, after the clock's now: another clock; was {tile.state}"
        return Tile(**{**shown, "state": "no data", "detail": why})
    if age > stale and tile.state != "no data":
        why = f"no data since {tile.measured:%Y-%m-%d %H:%M} UTC (was {tile.state}: {tile.detail})"
        return Tile(**{**shown, "state": "no data", "detail": why})
    return Tile(**shown)


def _none(name: str, title: str, why: str, command: str) -> Tile:
    return Tile(name, title, "no data", "\N{EN DASH}", "", why, None, command=command)


def _skew(m: Measured) -> Tile:
    name, title, link, command = "skew", "Training-Serving Skew", "skew.html", "make skew"
    if m.skew.data is None:
        return _none(name, title, f"skew.json: {m.skew.why}", command)
    try:
        parity, scores = m.skew.data["parity"], m.skew.data["scores"]
        exact, compared = int(parity["exact"]), int(parity["compared"])
        equal, scored = int(scores["equal"]), int(scores["compared"])
        missing = [shift["feature"] for shift in m.skew.data["shifts"] if shift["alarm"] == "missing"]
        last = _instant(m.skew.data["last"])
    except (KeyError, TypeError, ValueError) as error:
        return _none(name, title, f"skew.json: damaged ({error!r})", command)
    if not compared:
        return _none(name, title, "the audit compared no vector", command)
    wrong = [f"{compared - exact:,} of {compared:,} vectors differ from training's"] if exact < compared else []
    wrong += [f"{scored - equal:,} of {scored:,} scores are not reproduced"] if equal < scored else []
    wrong += [f"never served: {', '.join(missing)}"] if missing else []
    state: State = "alarm" if wrong else "ok" if scored else "attention"
    fine = f"{compared:,} vectors compared" + (f", {scored:,} scores reproduced" if scored else ", no score reproduced")
    number = f"{exact / compared:.2%} exact"
    return Tile(name, title, state, number, "100 %", "; ".join(wrong) or fine, last, link=link, command=command)


def _drift(m: Measured) -> Tile:
    name, title, command = "drift", "Data Drift That Nobody Is Watching", "make monitor"
    window = _newest(m)
    if window is None:
        return _none(name, title, _no_window(m), command)
    raised = {kind: sorted({c.feature for c in window.columns if kind in c.alarms}) for kind in _INPUT}
    domain = any(c.rule == "domain" and c.outcome == "alarm" for c in window.checks)
    told = [f"{kind}: {', '.join(features)}" for kind, features in raised.items() if features]
    told += ["requests differ from training in several features together"] if domain else []
    if not window.columns:
        return _none(name, title, "the newest judged window compared no column", command)
    count, total = len({f for features in raised.values() for f in features}), len({c.feature for c in window.columns})
    state: State = "alarm" if raised["drift"] or raised["missing"] or raised["nulls"] or domain else "ok"
    if state == "ok" and (raised["new_category"] or m.windows_why):
        state, told = "attention", [*told, *([m.windows_why] if m.windows_why else [])]
    detail = "; ".join(told) or f"window of {window.start:%Y-%m-%d}, {window.rows:,} requests"
    number = f"{count} of {total} features"
    return Tile(name, title, state, number, "0", detail, window.end, link="monitor.html", command=command)


def _features(m: Measured) -> Tile:
    name, title, command = "features", "Feature Store Inconsistencies", "make materialize"
    if m.traffic is None:
        return _none(name, title, m.traffic_why or "no predictions logged", "make serve")
    t = m.traffic
    stale, missing = t.stale / t.rows, t.missing / t.rows
    told = f"{t.stale:,} of {t.rows:,} requests had stale features, {t.missing:,} had none of a view"
    state: State = "alarm" if stale > STALE_MOST else "ok"
    if state == "ok" and (missing > MISSING_MOST or stale > STALE_MOST * _NEAR):
        state = "attention"
    if t.future:
        state, told = "alarm", f"{t.future:,} requests were given values from after their own moment; {told}"
    limit = f"{STALE_MOST:.0%} of a day"
    return Tile(name, title, state, f"{stale:.2%} stale", limit, told, t.last, link="skew.html", command=command)


def _latency(m: Measured) -> Tile:
    name, title, command = "latency", "Latency Surprises That Kill User Experience", "make monitor"
    window = _newest(m)
    if window is None:
        return _none(name, title, _no_window(m), command)
    check = next((c for c in window.checks if c.rule == "latency"), None)
    if check is None or check.value is None or check.limit is None or check.outcome == "no data":
        why = check.text if check else "the newest window has no latency"
        return _none(name, title, why, command)
    state: State = "alarm" if check.outcome == "alarm" else "ok"
    if state == "ok" and check.value > _NEAR * check.limit:
        state = "attention"
    number, limit = f"p99 {check.value:.1f} ms", f"{check.limit:g} ms"
    return Tile(name, title, state, number, limit, check.text, window.end, link="monitor.html", command=command)


def _degradation(m: Measured) -> Tile:
    name, title, command = "degradation", "Silent Model Degradation", "make monitor"
    window = _newest(m)
    if window is None:
        return _none(name, title, _no_window(m), command)
    checks = [c for c in window.checks if c.rule in _OUTPUT]
    alarms = [c.text for c in checks if c.outcome == "alarm"]
    shift = next((c for c in checks if c.rule == "mean_shift" and c.value is not None), None)
    known = [s for s in m.stretches if s.evidence is not None and s.role == "primary"]
    last = max(known, key=lambda s: s.end, default=None)
    if last is not None and last.drifted:
        alarms.insert(0, f"truth has left the estimate (evidence {last.evidence:,.0f}, limit {THRESHOLD:g})")
    if shift is None and not alarms:
        return _none(name, title, "the newest judged window has no mean prediction to compare", command)
    number = f"mean {shift.value:+.1f} sd" if shift and shift.value is not None else f"{len(alarms)} alarms"
    limit = f"{shift.limit:.1f} sd" if shift and shift.limit is not None else "0"
    state: State = "alarm" if alarms else "ok" if last else "attention"
    fine = _quality(last) if last else "prediction distribution as in training; no labels to confirm it"
    detail = "; ".join(alarms) or fine
    return Tile(name, title, state, number, limit, detail, window.end, link="monitor.html", command=command)


def _quality(stretch: Stretch) -> str:
    realized = stretch.realized.get("auc")
    return f"confirmed by labels until {stretch.end:%Y-%m-%d}" + (f", AUC {realized[0]:.3f}" if realized else "")


def _reproducible(m: Measured, now: datetime) -> Tile:
    name, title, command = "pipeline", "The \u201cIt Works on My Machine\u201d Pipeline Problem", "make reproduce"
    if not m.played:
        return _none(name, title, m.roles_why or "no model is seated", "make train")
    broken = [f"{p.role} version {p.version}: {p.why}" for p in m.played if p.record is None]
    gaps = [f"{p.role} version {p.version}: {gap}" for p in m.played if p.record is not None for gap in _gaps(p.record)]
    whole = sum(p.record is not None and not _gaps(p.record) for p in m.played)
    state: State = "alarm" if broken else "attention" if gaps else "ok"
    detail = "; ".join((*broken, *gaps)) or "code, data, lock and seed of every seated model are recorded"
    number = f"{whole} of {len(m.played)} models"
    return Tile(name, title, state, number, f"{len(m.played)}", detail, now, command=command)


def _gaps(record: Mapping[str, Any]) -> list[str]:
    environment = record.get("environment") or {}
    gaps = [] if environment.get("commit") else ["no commit recorded"]
    gaps += ["trained from changed sources"] if environment.get("dirty") else []
    gaps += [f"no {what} recorded" for what in ("data_digest", "seed", "as_of") if record.get(what) in (None, "")]
    gaps += [] if environment.get("lock") else ["no lock recorded"]
    return gaps + (["gate passed over"] if record.get("gate_passed_over") else [])


def _fallback(m: Measured) -> Tile:
    name, title, command = "fallback", "Missing Fallback Strategies", "make chaos"
    if not m.played:
        return _none(name, title, m.roles_why or "no model is seated", "make train")
    own = next((p for p in m.played if p.role == "fallback"), None)
    if own is None or own.record is None:
        why = "nobody plays the fallback" if own is None else own.why
        return Tile(name, title, "alarm", "no fallback", "1", why, None, command="make train")
    t = m.traffic
    if t is None:
        why = f"fallback version {own.version} is seated; {m.traffic_why or 'no predictions logged'}"
        return _none(name, title, why, "make serve")
    share = t.fallback / t.rows
    told = f"fallback version {own.version} answered {t.fallback:,} of {t.rows:,}, the safe default {t.unanswered:,}"
    state: State = "alarm" if t.unanswered or share > FALLBACK_MOST else "ok"
    if state == "ok" and share > FALLBACK_MOST * 0.5:
        state = "attention"
    return Tile(name, title, state, f"{share:.2%} of answers", f"{FALLBACK_MOST:.0%}", told, t.last, command=command)


def _newest(m: Measured) -> Window | None:
    return max((w for w in m.windows if w.status == "judged"), key=lambda w: w.end, default=None)


def _no_window(m: Measured) -> str:
    if m.windows_why:
        return m.windows_why
    return f"no window could be judged: {m.windows[-1].reason}" if m.windows else "the monitor has not run"


def _instant(text: Any) -> datetime:
    return parse_instant(str(text))
