"""The record of a watch: ``<state>/watch/<revision>.json``, written in one rename at every look."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from deploy.watch_checks import WatchCheck
from deploy.watch_expected import Expected
from service.errors import NotReady
from service.journal import replace_text
from service.roles import Seat

# ``open`` goes on; every other one is final.
Status = Literal["open", "survived", "breached", "reverted", "rolled_back", "superseded"]
_LOOKS = 300


@dataclass(frozen=True)
class Look:
    """One look at it: when, at how many requests, and what each check said."""

    at: datetime
    requests: int
    outcomes: dict[str, str]


@dataclass(frozen=True)
class Watch:
    """One promotion's watch.

    Attributes:
        revision: of the roles after the promotion.
        opened, ends: the stretch of clock time whose requests are watched.
        slot: where the promoted model rehearsed.
        verdict: digest of the verdict; None when the promotion was forced.
        expected: frozen when the watch opened.
        checks: of the last look.
        looks: the last few hundred.
        closed, why: when and why it ended.
    """

    revision: int
    opened: datetime
    ends: datetime
    slot: str | None
    promoted: Seat
    replaced: Seat
    verdict: str | None
    expected: Expected
    status: Status = "open"
    checks: tuple[WatchCheck, ...] = ()
    looks: tuple[Look, ...] = ()
    closed: datetime | None = None
    why: str = ""

    @property
    def breaches(self) -> tuple[WatchCheck, ...]:
        """Critical checks that failed at the last look."""
        return tuple(check for check in self.checks if check.critical and check.outcome == "fail")

    def looked(self, at: datetime, requests: int, checks: tuple[WatchCheck, ...]) -> Watch:
        """The watch after another look."""
        look = Look(at, requests, {check.name: check.outcome for check in checks})
        # A scheduled watch that sees nothing new says nothing new.
        kept = [one for one in self.looks if one.at != at][1 - _LOOKS :]
        return replace(self, checks=checks, looks=(*kept, look))

    def ended(self, status: Status, at: datetime, why: str) -> Watch:
        """The watch after its end."""
        return replace(self, status=status, closed=at, why=why)


_WATCH = TypeAdapter(Watch)


def folder(state_dir: Path) -> Path:
    """Where the records are."""
    return state_dir / "watch"


def write_watch(state_dir: Path, watch: Watch) -> Path:
    """Write a record; returns its path."""
    path = folder(state_dir) / f"{watch.revision}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(_plain(asdict(watch)), indent=1, allow_nan=False) + "\n")
    return path


def read_watch(path: Path) -> Watch:
    """Read a record.

    Raises:
        NotReady: when it cannot be read.
    """
    try:
        return _WATCH.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        msg = f"{path} cannot be read ({first}); move it away, and the next `make watch` opens it anew from the logs"
        raise NotReady(msg) from None


def read_watches(state_dir: Path) -> list[Watch]:
    """Every record, in the order of their promotions.

    Raises:
        NotReady: when one cannot be read.
    """
    paths = sorted((p for p in folder(state_dir).glob("*.json") if p.stem.isdecimal()), key=lambda p: int(p.stem))
    return [read_watch(path) for path in paths]


def window(opened: datetime, days: float) -> datetime:
    """When a watch ends."""
    return opened + timedelta(days=days)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
