"""What the soak makes of its samples; and a short one on a small bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import loader
from benchmarks.soak import Soak, faults, growth
from tests.bundle import REQUEST, make_bundle
from tests.serving import served

KEPT: dict[str, Any] = {"requests": 1000, "non_200": 0, "rss_growth": 5.0, "longest_stall_ms": 50.0}


def samples(*sizes: int) -> list[tuple[int, dict[str, int]]]:
    """One process's memory at each tenth of 1000 requests."""
    return [(100 * tenth, {"gateway 1": size}) for tenth, size in enumerate(sizes)]


def test_growth_is_the_last_tenth_against_the_second() -> None:
    assert growth(samples(10, 100, 1, 1, 1, 1, 1, 1, 1, 103, 105), 1000) == {"gateway 1": 4.0}


def test_growth_during_the_warm_up_does_not_count() -> None:
    assert growth(samples(10, *[100] * 10), 1000) == {"gateway 1": 0.0}


def test_a_process_that_was_replaced_has_no_growth() -> None:
    before, after = {"primary 1": 100, "gateway 3": 100}, {"primary 2": 500, "gateway 3": 100}

    assert growth([(100, before), (900, after)], 1000) == {"gateway 3": 0.0}


def test_a_run_too_short_to_have_both_ends_measures_no_growth() -> None:
    assert growth(samples(1, 1, 1), 1000) == {}


def test_a_result_on_its_limits_keeps_them() -> None:
    assert faults(KEPT, 1000) == []


@pytest.mark.parametrize(
    "missed",
    [{"requests": 999}, {"non_200": 1}, {"rss_growth": 5.1}, {"rss_growth": None}, {"longest_stall_ms": 50.1}],
)
def test_one_figure_beyond_its_limit_is_one_fault(missed: dict[str, Any]) -> None:
    assert len(faults(KEPT | missed, 1000)) == 1


@pytest.mark.slow
def test_twenty_thousand_requests_neither_grow_nor_stall_the_service(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    bodies = tmp_path / "requests.jsonl"
    bodies.write_text(json.dumps(REQUEST) + "\n")

    with served(bundle, tmp_path) as service:
        found = Soak(tmp_path, 20_000, every_s=0.2).run(service.url, bodies, seconds=120)

    assert faults(found, 20_000) == []
    assert found["log_dropped"] == 0


def test_a_million_is_asked_for_as_a_million() -> None:
    command = loader("http://127.0.0.1:1", Path("bodies"), requests=1_000_000, seconds=2.5)

    assert command[-4:] == ["--requests", "1000000", "--seconds", "2.5"]
