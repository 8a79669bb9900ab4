"""The operator's hand on the circuit breakers: a small file every worker follows, so that it outlives a restart."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from service.breaker import MODES, Mode
from service.cast import Cast
from service.errors import BadRequest, NotReady, problem
from service.following import Follower
from service.roles import SEATS, locked

logger = logging.getLogger("understudy")


def read_modes(path: Path) -> dict[str, Mode]:
    """Return the modes that were set; empty when none was.

    Raises:
        NotReady: when the file cannot be read.
    """
    try:
        plain = json.loads(path.read_text())
        return {role: plain[role] for role in SEATS if plain.get(role) in MODES}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{path} cannot be read ({error}); set a mode anew, or remove it"
        raise NotReady(msg) from None


def write_mode(path: Path, role: str, mode: str, known: Mapping[str, Mode] | None = None) -> dict[str, Mode]:
    """Set one role's mode and return all of them.

    Args:
        known: modes to go on from when the file cannot be read; none.

    Raises:
        BadRequest: 422 for a role or mode that does not exist.
    """
    if role not in SEATS:
        raise BadRequest([problem("role", role, f"is no role; send one of {', '.join(SEATS)}")])
    if mode not in MODES:
        raise BadRequest([problem("mode", mode, f"is no mode; send one of {', '.join(MODES)}")])
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        try:
            before = read_modes(path)
        except NotReady:
            before = dict(known or {})
        modes: dict[str, Mode] = {**before, role: mode}
        temporary = path.with_name(f"{path.name}.next")
        temporary.write_text(json.dumps(modes, indent=1) + "\n")
        temporary.replace(path)
    logger.warning("the %s breaker is %s by an operator's hand", role, mode)
    return modes


class Control(Follower):
    """Sets the breakers to what the file says.

    Attributes:
        modes: that were set last; a file that cannot be read changes nothing, one that is gone ends them all.
    """

    def __init__(self, path: Path, cast: Cast) -> None:
        self.path = path
        self.modes: dict[str, Mode] = {}
        self._cast = cast
        self._stamp: object = object()
        self._problem = ""

    def look(self) -> None:
        """Set the breakers to what the file says, when it has changed."""
        try:
            status = self.path.stat()
            stamp: object = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            stamp = None
        except OSError as error:
            self._tell(f"{self.path} cannot be read ({error})")
            return
        if stamp == self._stamp:
            return
        try:
            modes = read_modes(self.path)
        except NotReady as error:
            self._tell(str(error))
            return
        self.modes, self._stamp, self._problem = modes, stamp, ""
        operate(self._cast, modes)

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("%s; the breakers stay as they are", problem)
        self._problem = problem


def operate(cast: Cast, modes: Mapping[str, Mode]) -> None:
    """Set the breakers' modes; roles that are not named go back to ``auto``."""
    for actor in cast:
        actor.breaker.operate(modes.get(actor.role, "auto"))
