"""Fixtures of the service tests: a router on fakes, and nothing that needs a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from service.breaker import Breaker, Rules
from service.cast import Actor, Cast, Echo
from service.clock import ManualClock
from service.fakes import FakeLookup, FakeRunner, MemoryLog
from service.features import Lookup, Stored
from service.routing import Budget, Router, Splits
from service.runners import Runner
from service.sampling import Sampling
from service.shadow import Bounds, ShadowPath
from service.tracing import Seen
from tests.bundle import NOW, STORED, parsed_request, primary_contract


def stored_fresh(_: Any = None) -> Stored:
    """Everything found, ten minutes old."""
    at = NOW - timedelta(minutes=10)
    return Stored({view: dict(row) for view, row in STORED.items()}, dict.fromkeys(STORED, at))


@dataclass
class Stage:
    """A router with everything outside replaced, and the pieces to look at afterwards."""

    lookup: Lookup = field(default_factory=lambda: FakeLookup(stored_fresh))
    primary: Runner | None = field(default_factory=lambda: FakeRunner(lambda _: 0.3, version="7"))
    fallback: Runner | None = field(default_factory=lambda: FakeRunner(lambda _: 0.2, version="2"))
    shadow: Runner | None = None
    shadow_2: Runner | None = None
    noise: float = 0.0
    deadline_s: float = 0.2
    log: MemoryLog = field(default_factory=MemoryLog)
    shadow_log: MemoryLog = field(default_factory=MemoryLog)
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    sample: float = 1.0
    sample_key: str = ""
    queue: int = 10
    seen_trips: list[Seen] = field(default_factory=list)
    splits: Splits | None = None

    def __post_init__(self) -> None:
        rules = Rules(slow_s=self.deadline_s / 2)
        self.cast = Cast(
            Actor("primary", self.primary, Breaker(rules)),
            Actor("fallback", self.fallback, Breaker(rules)),
            (Actor("shadow", self.shadow, Breaker(rules)), Actor("shadow_2", self.shadow_2, Breaker(rules))),
            base_rate=0.25,
        )
        bounds = Bounds(queue=self.queue, batch=4, gather_s=0.01, timeout_s=0.1)
        sampling = Sampling(self.sample, self.sample_key)
        self.path, self.path_2 = (ShadowPath(actor, self.shadow_log, sampling, bounds) for actor in self.cast.shadows)
        self.echo = Echo(self.cast.primary, Breaker(rules))
        self.again = ShadowPath(self.echo, self.shadow_log, Sampling(self.noise), bounds)
        self.router = Router(
            primary_contract(),
            self.lookup,
            self.cast,
            (self.path, self.path_2),
            self.log,
            self.clock,
            Budget(self.deadline_s, self.deadline_s / 4),
            service_version="test",
            tracer=self,
            splits=self.splits,
            again=self.again,
        )

    def seen(self, trip: Seen) -> None:
        """Keep what the tracer is told."""
        self.seen_trips.append(trip)

    def close(self) -> None:
        """Nothing to flush."""

    @property
    def request(self) -> dict[str, Any]:
        """A good request."""
        return parsed_request()


@pytest.fixture
def stage() -> Callable[..., Stage]:
    """Make a stage with some parts replaced."""
    return Stage
