"""The operator's hand on the circuit breakers: a small file every worker follows, so that it outlives a restart."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from service.breaker import MODES, Mode
from service.cast import Cast
from service.errors import BadRequest, problem
from service.roles import SEATS, locked

logger = logging.getLogger("understudy")

_LOOK_S = 0.5


def read_modes(path: Path) -> dict[str, Mode]:
    """Return the modes that were set; empty when none was, or the file cannot be read."""
    try:
        plain = json.loads(path.read_text())
        return {role: plain[role] for role in SEATS if plain.get(role) in MODES}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); every breaker decides for itself", path, error)
        return {}


def write_mode(path: Path, role: str, mode: str) -> dict[str, Mode]:
    """Set one role's mode and return all of them.

    Raises:
        BadRequest: 422 for a role or mode that does not exist.
    """
    if role not in SEATS:
        raise BadRequest([problem("role", role, f"is no role; send one of {', '.join(SEATS)}")])
    if mode not in MODES:
        raise BadRequest([problem("mode", mode, f"is no mode; send one of {', '.join(MODES)}")])
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        modes = {**read_modes(path), role: mode}
        temporary = path.with_name(f"{path.name}.next")
        temporary.write_text(json.dumps(modes, indent=1) + "\n")
        temporary.replace(path)
    logger.warning("the %s breaker is %s by an operator's hand", role, mode)
    return modes


class Control:
    """Follows the file, for as long as it is started."""

    def __init__(self, path: Path, cast: Cast) -> None:
        self.path = path
        self._cast = cast
        self._stamp: object = object()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self.look()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def look(self) -> None:
        """Set the breakers to what the file says, when it has changed."""
        try:
            status = self.path.stat()
            stamp: object = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = None
        if stamp != self._stamp:
            self._stamp = stamp
            operate(self._cast, read_modes(self.path))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()


def operate(cast: Cast, modes: Mapping[str, Mode]) -> None:
    """Set the breakers' modes; roles that are not named go back to ``auto``."""
    for actor in cast:
        actor.breaker.operate(modes.get(actor.role, "auto"))
