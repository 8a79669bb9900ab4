"""Fixtures of the service tests: a router on fakes, and nothing that needs a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from service.clock import ManualClock
from service.fakes import FakeLookup, FakeRunner, MemoryLog
from service.features import Lookup, Stored
from service.package import Signature
from service.routing import Router, Understudies
from service.runners import Runner
from service.shadow import ShadowPath
from tests.bundle import CATEGORIES, NOW, STORED, parsed_request, primary_contract


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
    deadline_s: float = 0.2
    log: MemoryLog = field(default_factory=MemoryLog)
    shadow_log: MemoryLog = field(default_factory=MemoryLog)
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    sample: float = 1.0
    queue: int = 10

    def __post_init__(self) -> None:
        contract = primary_contract()
        part = Signature("lightgbm", "request_only", "", ("origin", "dep_hour"), CATEGORIES, "probability", 0.25)
        self.path = ShadowPath(
            self.shadow, self.shadow_log, sample=self.sample, queue=self.queue, batch=4, timeout_s=0.1
        )
        self.router = Router(
            contract,
            self.lookup,
            Understudies(self.primary, self.fallback, part, base_rate=0.25),
            self.path,
            self.log,
            self.clock,
            deadline_s=self.deadline_s,
            reserve_s=self.deadline_s / 4,
            service_version="test",
        )

    @property
    def request(self) -> dict[str, Any]:
        """A good request."""
        return parsed_request()


@pytest.fixture
def stage() -> Callable[..., Stage]:
    """Make a stage with some parts replaced."""
    return Stage
