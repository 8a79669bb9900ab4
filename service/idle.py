"""Seats nobody runs: a model in a shadow slot beyond the setting ``shadows`` does nothing, and is told of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.errors import NotReady
from service.following import Follower
from service.roles import SEATS, SLOTS, Role, Seat, read_roles

logger = logging.getLogger("understudy")


def idle_seats(seats: Mapping[Role, Seat], run: Iterable[str]) -> dict[Role, str]:
    """Say of each seated role that a service does not run why its model does nothing.

    Args:
        run: the roles it runs.
    """
    running = set(run)
    slots = sum(role in running for role in SLOTS)
    return {role: _why(role, seat, slots) for role, seat in seats.items() if role not in running}


def _why(role: Role, seat: Seat, slots: int) -> str:
    seated = f"version {seat.version} is seated as {role}"
    if role not in SEATS:
        return f"{seated}, which is no role ({', '.join(SEATS)}); seat it as one of them"
    needed = SLOTS.index(role) + 1
    return f"{seated}, but this service runs shadows={slots}; set UNDERSTUDY_SHADOWS={needed} and start it again"


class IdleSeats(Follower):
    """Logs a warning for every seat that begins to be idle, looking at ``roles.json`` twice a second."""

    def __init__(self, models_dir: Path, run: Iterable[str]) -> None:
        self._models_dir = models_dir
        self._run = tuple(run)
        self._told: dict[Role, str] = {}
        self._stamp: object = None

    def look(self) -> None:
        """Tell of what has changed."""
        try:
            status = (self._models_dir / "roles.json").stat()
            stamp = status.st_ino, status.st_mtime_ns
            if stamp == self._stamp:
                return
            found = idle_seats(read_roles(self._models_dir).seats, self._run)
        except (OSError, NotReady):  # the runners tell of it
            return
        for role, why in found.items():
            if self._told.get(role) != why:
                logger.warning("%s", why)
        self._told, self._stamp = found, stamp
