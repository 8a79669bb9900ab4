"""A promotion with a past and a present: logs of real (toy) models, so that logged vectors give the logged answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from deploy.promote import Wish, promote
from deploy.watch import look
from deploy.watch_record import Watch
from service.clock import clock_from, write_clock
from service.package import PackagedModel, load_package
from service.roles import Seat, read_history
from service.settings import Settings
from tests.deploy.promotions import known, seat, seated, verdict_of, write_verdict
from tests.monitoring.logs import START, Logs, assemble

REHEARSED = 8
PER_DAY = 240
PROMOTED = START + timedelta(days=REHEARSED)
DAY = timedelta(hours=24)

Line = dict[str, Any]
Spoil = Callable[[int, Line], None]
Label = Callable[[float, float], float]


def untouched(_: int, line: Line) -> None:
    """Leave a line of the prediction log as it is."""


def even(new: float, old: float) -> float:
    """A truth that speaks for neither model."""
    return float(hash((round(new, 9), round(old, 9))) % 2)


def promotion(folder: Path, **more: Any) -> Settings:
    """A shadow (version 3) that rehearsed for eight days beside version 1, and was promoted after them."""
    settings = seated(folder, **more)
    write_clock(folder / "clock", PROMOTED)
    first, second = _model(settings, seat(settings, "primary")), _model(settings, seat(settings, "shadow"))
    logs = _logs(REHEARSED, 1, timedelta(0), "b")
    for line, old, new in _scored(logs, first, second):
        line["prediction"] = old
        _rehearsed(logs, line["request_id"])["prediction"] = new
    _signed(logs.predictions, seat(settings, "primary"))
    _signed(logs.shadow, seat(settings, "shadow"))
    _write(settings, logs, "a")
    verdict = verdict_of(settings, opened=START, decided_at=PROMOTED, expires_at=PROMOTED + timedelta(days=7))
    write_verdict(settings, verdict)
    promote(settings, known(), Wish(), lambda _: None)
    return settings


def live(
    settings: Settings,
    days: int,
    *,
    per_day: int = PER_DAY,
    spoil: Spoil = untouched,
    label: Label | None = even,
    same: bool = False,
) -> None:
    """Let the promoted model answer for some days, and set the clock to their end.

    Args:
        spoil: changes a line, given its place.
        label: truth from the promoted and the replaced model's score; None: no labels come.
        same: every request alike.
    """
    move = read_history(settings.models_dir)[-1]
    promoted, replaced = move.after["primary"], move.before["primary"]
    assert promoted is not None
    assert replaced is not None
    logs = _logs(days, 2, timedelta(days=REHEARSED), "l", per_day)
    if same:
        for line in logs.predictions:
            line["vector"] = dict(logs.predictions[0]["vector"])
    models = _model(settings, promoted), _model(settings, replaced)
    logs.shadow.clear()
    for place, (line, new, old) in enumerate(_scored(logs, *models)):
        line["prediction"] = new
        if label is not None:
            logs.labels[place]["label"] = label(new, old)
    _signed(logs.predictions, promoted)
    for place, line in enumerate(logs.predictions):
        spoil(place, line)
    if label is None:
        logs.labels.clear()
    _write(settings, logs, f"l{days}")
    write_clock(Path(settings.clock), PROMOTED + timedelta(days=days))


def later(settings: Settings, hours: float) -> None:
    """Move the clock on."""
    write_clock(Path(settings.clock), clock_from(settings.clock).now() + timedelta(hours=hours))


def looked(settings: Settings, said: list[str] | None = None) -> tuple[Watch, int]:
    """Look once."""
    watch, code = look(settings, known(), said.append if said is not None else lambda _: None, DAY)
    assert watch is not None
    return watch, code


def outcomes(watch: Watch) -> dict[str, str]:
    """What each check said."""
    return {check.name: check.outcome for check in watch.checks}


def reverts(settings: Settings) -> int:
    """How often a model was taken back."""
    return [move.kind for move in read_history(settings.models_dir) if move.done].count("revert")


def falls_back(line: Line, reason: str) -> None:
    """Let the fallback answer it."""
    line |= {"role": "fallback", "model_version": "2", "model_digest": "f" * 64, "fallback_reason": reason}


def silent(_: str) -> None:
    """Say nothing."""


def times_out(place: int, line: Line) -> None:
    """A tenth of the requests."""
    if place % 10 == 0:
        falls_back(line, "primary_timeout")


def _logs(days: int, seed: int, shift: timedelta, prefix: str, per_day: int = PER_DAY) -> Logs:
    n = days * per_day
    rng = np.random.default_rng(seed)
    logs = assemble(rng, np.zeros(n), np.zeros(n), np.zeros(n), days=days, delay=timedelta(hours=8))
    for lines in (logs.predictions, logs.shadow, logs.labels):
        for line in lines:
            line["request_id"] = prefix + line["request_id"]
            for name in ("at", "known_at"):
                if name in line:
                    line[name] += shift
    # The moment of the promotion belongs to the time before it.
    logs.predictions[0]["at"] += timedelta(minutes=1)
    return logs


def _scored(logs: Logs, *models: PackagedModel) -> list[Any]:
    vectors = [line["vector"] for line in logs.predictions]
    return list(zip(logs.predictions, *(model.score(vectors) for model in models), strict=True))


def _rehearsed(logs: Logs, name: str) -> Line:
    place = int(name[2:])
    assert logs.shadow[place]["request_id"] == name
    return logs.shadow[place]


def _signed(lines: list[Line], one: Seat) -> None:
    for line in lines:
        line |= {"model_version": one.version, "model_digest": one.digest}


def _model(settings: Settings, one: Seat) -> PackagedModel:
    return load_package(settings.models_dir / one.package, one.version, one.digest)


def _write(settings: Settings, logs: Logs, name: str) -> None:
    logs.write(settings.log_dir / name)
    for path in sorted((settings.log_dir / name).glob("*/*.jsonl")):
        target = settings.log_dir / path.parent.name / f"{name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
