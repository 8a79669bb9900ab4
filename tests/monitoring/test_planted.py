"""The planted shadows of the benchmark: each bad one refused for its own fault, the good one promoted."""

from __future__ import annotations

import pytest

from benchmarks.campaigns import CONTRACT, PLANTS, frame_of, good
from monitoring.compare import compare
from monitoring.verdict import decide


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_the_first_reason(name: str) -> None:
    plant, fault = PLANTS[name]

    verdict = decide(compare(frame_of(plant(100)), CONTRACT))

    assert verdict.decision != "promote"
    assert (verdict.reasons[0].criterion, verdict.reasons[0].outcome) == (fault, "fail")


def test_a_better_shadow_is_promoted() -> None:
    assert decide(compare(frame_of(good(100)), CONTRACT)).decision == "promote"
