"""Whose processor time is spent: the services measured, and everybody else on the machine."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # carries no types

# Cores. A service that is asked nothing still looks at its clock, its models and its runners.
IDLE = 0.1
# What others may use before a measurement counts as disturbed.
QUIET = 0.25


def processes(folder: Path) -> dict[str, list[psutil.Process]]:
    """Every process of the service that runs in a folder, by its BentoML service; ``""`` for the others."""
    home = str(folder / "bentoml")
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("BENTOML_HOME") == home:
                found.setdefault(service_name(process), []).append(process)
    return found


def service_name(process: psutil.Process) -> str:
    """The BentoML service a process runs; ``""`` for its supervisor and for other programs."""
    words = process.cmdline()
    return words[words.index("--service-name") + 1] if "--service-name" in words[:-1] else ""


def memory(folder: Path) -> dict[str, int]:
    """Resident bytes of each gateway worker and runner of the service in a folder, by name and process id."""
    seen = {}
    for name, some in processes(folder).items():
        for process in some if name else ():
            with contextlib.suppress(psutil.Error):
                seen[f"{name} {process.pid}"] = int(process.memory_info().rss)
    return seen


@dataclass(frozen=True)
class Spent:
    """Processor seconds since the start of the machine: of the services, of this program with its own, of everybody."""

    at: float
    services: float
    own: float
    everybody: float

    def since(self, before: Spent) -> tuple[float, float]:
        """Cores that the services used since then, and others."""
        passed = self.at - before.at
        services = self.services - before.services
        others = self.everybody - before.everybody - services - (self.own - before.own)
        return services / passed, max(0.0, others / passed)


class Machine:
    """Tells when the services have finished what they still had to do and nobody else is busy.

    Args:
        home: folder below which the services run.
        patience_s: longest time spent in all waiting for others.
    """

    def __init__(self, home: Path, patience_s: float) -> None:
        self._home = str(home)
        self._patience_s = patience_s

    @property
    def patient(self) -> bool:
        """Whether there is time left to wait for others."""
        return self._patience_s > 0

    def spent(self) -> Spent:
        """Read the counters."""
        # What a process has waited for counts as its own, so that no restart looks like somebody else's work.
        services, own = 0.0, sum(os.times()[:4])
        children = {process.pid for process in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if any(environment.get(n, "").startswith(self._home) for n in ("BENTOML_HOME", "HANDWRITTEN_HOME")):
                    services += sum(process.cpu_times()[:4])
                elif process.pid in children:
                    own += sum(process.cpu_times()[:4])
        cpu = psutil.cpu_times()
        everybody = cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq + cpu.steal
        return Spent(time.monotonic(), services, own, everybody)

    def shares(self, seconds: float) -> tuple[float, float]:
        """Cores used by the services, and by others, over the next seconds."""
        before = self.spent()
        time.sleep(seconds)
        return self.spent().since(before)

    def calm(self, services: int, patience_s: float = 20.0) -> None:
        """Return when so many idle services need no more than they do idle, and others are quiet."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            begun = time.monotonic()
            busy, others = self.shares(0.3)
            if busy > IDLE * services:
                continue
            if others <= QUIET or not self.patient:
                return
            self._patience_s -= time.monotonic() - begun


@contextlib.contextmanager
def stopped_shadow(folder: Path, watched_s: float) -> Iterator[None]:
    """Keep the shadow of the service in a folder stopped, also the one that is started in its place.

    Args:
        watched_s: time within which that happens. Nobody kills the second one, which has not yet said who it is; and
            looking for it takes time that others would be measured in.
    """
    shadows = processes(folder).get("shadow", [])
    if not shadows:
        raise SystemExit(f"no process of the shadow in {folder}")
    parent, over = shadows[0].parent(), threading.Event()

    def each(what: str) -> None:
        with contextlib.suppress(psutil.Error):
            for child in parent.children(recursive=True) if parent else []:
                with contextlib.suppress(psutil.Error):
                    if service_name(child) == "shadow":
                        getattr(child, what)()

    end = time.monotonic() + watched_s

    def keep() -> None:
        while not over.wait(0.5) and time.monotonic() < end:
            each("suspend")

    each("suspend")
    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        each("resume")
