"""The running split on disk: ``models/split.json``, moved only by compare-and-set, and followed by every gateway.

Beside it ``split.history.jsonl``, one line per move, never rewritten. As with the roles, the line is on disk before
the split moves: a kill in between leaves a line whose revision split.json never reached.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from service.errors import NotReady, UnderstudyError
from service.following import Follower
from service.journal import append_line, mover, replace_text
from service.roles import locked, read_roles
from service.split import Split

logger = logging.getLogger("understudy")

FILE = "split.json"
HISTORY = "split.history.jsonl"


class SplitMoved(UnderstudyError):
    """Somebody else moved the split since it was read."""


@dataclass(frozen=True)
class SplitState:
    """One state of the file; ``revision`` grows by one with every move, ``split`` is None while none runs."""

    revision: int
    split: Split | None


@dataclass(frozen=True)
class SplitMove:
    """One line of the history.

    Attributes:
        revision: of the file after the move.
        at: by the clock of the bundle, so that it can be held against the log.
        by: user and host.
        reason: why, in the mover's words.
        forced: whether a check was overruled.
        checks: what was checked, each with its number and limit.
        before, after: the split; None where none ran.
    """

    revision: int
    at: datetime
    by: str
    reason: str
    forced: bool
    before: Split | None
    after: Split | None
    checks: tuple[Mapping[str, Any], ...] = field(default=())


def read_split(models_dir: Path) -> SplitState:
    """Return the current state; revision 0 without a split when there never was one.

    Raises:
        NotReady: when the file exists but cannot be read.
    """
    path = models_dir / FILE
    try:
        plain = json.loads(path.read_text())
        return SplitState(int(plain["revision"]), Split.parse(plain["split"]) if plain["split"] else None)
    except FileNotFoundError:
        return SplitState(0, None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} cannot be read ({error}); restore it, or remove it to end the split"
        raise NotReady(msg) from None


def move_split(
    models_dir: Path,
    expected: int,
    split: Split | None,
    *,
    at: datetime,
    reason: str = "",
    forced: bool = False,
    checks: tuple[Mapping[str, Any], ...] = (),
) -> SplitState:
    """Replace the split (None ends it) if the revision is still ``expected``.

    Raises:
        SplitMoved: when the revision is another one; nothing was changed.
        NotReady: when the file cannot be read.
    """
    with locked(models_dir / ".split.lock"):
        current = read_split(models_dir)
        if current.revision != expected:
            msg = f"the split is at revision {current.revision}, not {expected}: someone moved it; look again and retry"
            raise SplitMoved(msg)
        # A file that somebody removed starts at 0 again; its history does not.
        revision = max([expected, *(move.revision for move in read_split_history(models_dir))]) + 1
        after = replace(split, revision=revision) if split else None
        line = {
            "revision": revision,
            "at": at.isoformat(),
            "by": mover(),
            "reason": reason,
            "forced": forced,
            "checks": list(checks),
            "before": current.split.plain() if current.split else None,
            "after": after.plain() if after else None,
        }
        append_line(models_dir / HISTORY, json.dumps(line, sort_keys=True))
        plain = {"revision": revision, "split": after.plain() if after else None}
        replace_text(models_dir / FILE, json.dumps(plain, indent=1, sort_keys=True) + "\n")
        return SplitState(revision, after)


def read_split_history(models_dir: Path) -> list[SplitMove]:
    """Return every move in order; a line that a crash tore is left out.

    Raises:
        NotReady: when the history exists but cannot be read.
    """
    try:
        lines = (models_dir / HISTORY).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        msg = f"{models_dir / HISTORY} cannot be read ({error}); restore it or move it away"
        raise NotReady(msg) from None
    return [move for move in map(_parsed, lines) if move is not None]


class SplitFollower(Follower):
    """Knows the split that runs right now, looking twice a second at its file and at the roles.

    A file that is gone ends the split; one that cannot be read changes nothing. A split whose models no longer play
    the roles it was made for has ended, whatever its file says.

    Attributes:
        current: the split; None while none runs. Reading it costs nothing.
    """

    def __init__(self, models_dir: Path) -> None:
        self.current: Split | None = None
        self._models_dir = models_dir
        self._stamp: object = object()
        self._problem = ""

    def look(self) -> None:
        """Take in what has changed."""
        stamp = tuple(_stamp(self._models_dir / name) for name in (FILE, "roles.json"))
        if stamp == self._stamp:
            return
        try:
            split = running(self._models_dir)
        except NotReady as error:
            if str(error) != self._problem:
                logger.warning("%s; the split stays as it was", error)
            self._problem = str(error)
        else:
            if split != self.current:
                logger.warning(
                    "split: %s", f"{split.name}, {split.share:.0%} to {split.slot}" if split else "none runs any more"
                )
            self.current, self._stamp, self._problem = split, stamp, ""


def running(models_dir: Path) -> Split | None:
    """Return the split in force: that of the file, while both its models still play the roles it was made for.

    Raises:
        NotReady: when the file or the roles cannot be read.
    """
    split = read_split(models_dir).split
    return split if split is not None and not outlived(split, models_dir) else None


def outlived(split: Split, models_dir: Path) -> str:
    """Say which of a split's models no longer plays; empty while both do.

    Raises:
        NotReady: when the roles cannot be read.
    """
    seats = {str(role): seat for role, seat in read_roles(models_dir).seats.items()}
    for role, digest in (("primary", split.control), (split.slot, split.treatment)):
        seat = seats.get(role)
        if seat is None or seat.digest != digest:
            now = f"version {seat.version} ({seat.digest[:12]})" if seat else "nobody"
            return f"{role} was {digest[:12]} and is now {now}"
    return ""


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _parsed(line: str) -> SplitMove | None:
    try:
        plain = json.loads(line)
        before, after = (Split.parse(plain[side]) if plain[side] else None for side in ("before", "after"))
        at = datetime.fromisoformat(plain["at"])
        checks = tuple(dict(check) for check in plain["checks"])
        reason, by = str(plain["reason"]), str(plain["by"])
        return SplitMove(int(plain["revision"]), at, by, reason, bool(plain["forced"]), before, after, checks)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
