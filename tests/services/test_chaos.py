"""A few faults of `make chaos`, so that what it promises is held by every run of the tests; its times are its own."""

from __future__ import annotations

import pytest

from benchmarks.chaos import run
from benchmarks.faults import FAULTS

pytestmark = pytest.mark.services

SOME = (
    "primary_killed",
    "primary_nan",
    "shadow_killed",
    "redis_killed",
    "disk_full",
    "log_folder_deleted",
    "worker_killed",
)


@pytest.mark.filterwarnings("ignore")
def test_under_faults_every_caller_is_answered_and_nothing_acknowledged_is_lost() -> None:
    report = run([fault for fault in FAULTS if fault.name in SOME], deadline_ms=50, rate=100, workers=2)

    result = report.result()
    assert result["faults"] == len(SOME)
    assert (result["non_200"], result["lost_acknowledged"]) == (0, 0)
    assert result["ledger_exact"], result["ledger"]
    assert result["unfelt"] == []
    assert all(episode.heal_s is not None for episode in report.episodes)
