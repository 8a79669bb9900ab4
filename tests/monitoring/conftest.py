"""Campaigns as frames and as verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monitoring.compare import compare
from monitoring.compare_job import open_logs
from monitoring.evidence import Evidence
from monitoring.pairing import FIRST, Paired
from tests.monitoring.logs import Logs, contract


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[Logs], Paired]:
    """Write logs and read them back joined."""

    def run(logs: Logs) -> Paired:
        return open_logs(logs.write(tmp_path / "logs"), contract()).of(FIRST)

    return run


@pytest.fixture
def gather(pair: Callable[[Logs], Paired]) -> Callable[[Logs], Evidence]:
    """Write logs and compare the roles in them."""

    def run(logs: Logs) -> Evidence:
        return compare(pair(logs), contract())

    return run
