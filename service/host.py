"""A runner's inside: the model of one role, exchanged for another while it answers."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.errors import NotReady, PackageError
from service.package import PackagedModel, load_package
from service.roles import Role, Seat, read_roles

logger = logging.getLogger("understudy")

_LOOK_S = 0.5
# A package that could not be taken may be on its way still.
_RETRY_S = 5.0
# A model that leaks is refused memory at the limit and fails from then on; it is ended a little earlier.
_NEAR = 0.8
# Row counts whose first call would otherwise cost a caller the model's lazy preparations.
_WARM = (1, 2, 32, 64)


class Host:
    """Loads what ``roles.json`` seats in a role, and follows it: the new model is verified, loaded and warmed beside
    the old one, then takes its place between two calls. When that fails the old one stays and the problem is told.

    Attributes:
        problem: why the seated model does not play; empty when it does.
    """

    def __init__(self, models_dir: Path, role: Role) -> None:
        self.role = role
        self.problem = ""
        self._models_dir = models_dir
        self._model: PackagedModel | None = None
        self._seat: Seat | None = None
        # The model before this one: a rollback needs no loading.
        self._shelf: dict[str, PackagedModel] = {}
        self._stamp: object = None
        self._failed_at = -math.inf
        self._take(*self._look())

    def score(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return version, digest, one score per row (None where the model gave no finite number or failed) and
        ``cpu_s``, the processor time it took in seconds.

        Raises:
            NotReady: when there is no model to ask.
        """
        model = self._model
        if model is None:
            raise NotReady(self.problem)
        start = time.process_time()
        try:
            scores: list[float | None] = list(model.score(rows))
        except Exception:
            if len(rows) == 1:
                raise
            # One row that the model cannot take must not cost the others their answer.
            scores = [_one(model, row) for row in rows]
        finite = [s if s is not None and math.isfinite(s) else None for s in scores]
        spent = time.process_time() - start
        return {"version": model.version, "digest": model.digest, "scores": finite, "cpu_s": spent}

    def hello(self) -> dict[str, Any]:
        """Say who plays: ``role``, ``seated``, ``version``, ``digest``, ``features``, ``base_rate``, ``problem``."""
        model = self._model
        return {
            "role": self.role,
            "seated": self._seat is not None,
            "version": model.version if model else None,
            "digest": model.digest if model else None,
            "features": list(model.signature.features) if model else [],
            "base_rate": model.signature.base_rate if model else None,
            "problem": self.problem,
        }

    async def follow(self, changed: Callable[[], None]) -> None:
        """Keep to what is seated, for ever; ``changed`` is called after every exchange or new problem."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if not self._moved():
                    continue
                before = self.hello()
                # Reading and verifying a package takes a while; calls are answered meanwhile.
                self._take(*await loop.run_in_executor(None, self._look))
                if self.hello() != before:
                    changed()
            except Exception:  # whatever it was, the next look may find it mended
                logger.exception("%s runner could not look at its seat", self.role)

    def _moved(self) -> bool:
        stamp = _stamp(self._models_dir / "roles.json")
        if stamp != self._stamp:
            return True
        waited = asyncio.get_running_loop().time() - self._failed_at
        return bool(self.problem) and self._seat is not None and waited > _RETRY_S

    def _look(self) -> tuple[object, Seat | None, PackagedModel | None, str]:
        path = self._models_dir / "roles.json"
        stamp = _stamp(path)
        if stamp is None and self._seat is not None:
            # An emptied role is one that the file leaves out; a file that went away says nothing.
            return stamp, self._seat, self._model, f"{path} is gone; restore it"
        try:
            seat = read_roles(self._models_dir).seats.get(self.role)
        except NotReady as error:
            return stamp, self._seat, self._model, str(error)
        if seat is None:
            return stamp, None, None, f"no model plays {self.role} in {path}; run `make train`"
        try:
            return stamp, seat, self._fetch(seat), ""
        except PackageError as error:
            return stamp, seat, self._model, str(error)
        except Exception as error:  # a model that loads may still fail its first rows in any way
            return stamp, seat, self._model, f"{seat.package}: the model fails on empty rows: {error!r}"

    def _fetch(self, seat: Seat) -> PackagedModel:
        known = [m for m in (self._model, *self._shelf.values()) if m is not None and m.digest == seat.digest]
        if known:
            old = known[0]
            return old if old.version == seat.version else old.renamed(seat.version)
        model = load_package(self._models_dir / seat.package, seat.version, seat.digest)
        for count in _WARM:
            model.score([{}] * count)
        return model

    def _take(self, stamp: object, seat: Seat | None, model: PackagedModel | None, problem: str) -> None:
        old = self._model
        if old is not None and model is not None and old.digest != model.digest:
            self._shelf = {old.digest: old}
        if problem and problem != self.problem:
            keeps = f"; version {model.version} stays" if model is not None else ""
            logger.warning("%s runner: %s%s", self.role, problem, keeps)
        elif model is not None and (old is None or old.digest != model.digest):
            logger.info("%s runner: version %s plays now", self.role, model.version)
        if problem and seat is not None:
            self._failed_at = _now()
        self._stamp, self._seat, self._model, self.problem = stamp, seat, model, problem


class MemoryGuard:
    """Bounds a runner's memory: the system refuses what would go beyond, and what comes near it ends and starts anew.

    Args:
        limit_bytes: of resident memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        # The system counts what is reserved, such as the stacks of threads, of which a large machine has many.
        resident, reserved = _memory()
        bound = reserved + max(limit_bytes - resident, 0)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    async def watch(self) -> None:
        """Look at the process's resident memory now and then, and end the process when it comes near the limit."""
        while True:
            await asyncio.sleep(_LOOK_S / 2)
            used, _ = _memory()
            if used > self._limit * _NEAR:
                logger.error("runner uses %d MB of memory (limit %d MB); it ends", used >> 20, self._limit >> 20)
                sys.stderr.flush()
                os._exit(1)


def _one(model: PackagedModel, row: Mapping[str, Any]) -> float | None:
    try:
        return model.score([row])[0]
    except Exception:  # a model may fail in any way
        return None


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # before the service runs
        return -math.inf


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _memory() -> tuple[int, int]:
    """Resident and reserved private memory of this process, in bytes; zeros where the system does not tell."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
        return tuple(int(fields[i]) * resource.getpagesize() for i in (1, 5))  # type: ignore[return-value]  # two
    except (OSError, ValueError, IndexError):
        return 0, 0
