"""Ratios are taken round by round, and every limit can be missed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.figures import against_others, beside, faults, interval, ratio, stage_p99s

KEPT: dict[str, Any] = {
    "ratio_vs_stock": 1.0,
    "ratio_vs_handwritten": 1.25,
    "p50_ratio_vs_stock_1": 2.0,
    "p99_ms_16": {"ours": 9.0, "stock_bentoml": 9.1, "handwritten": 9.1},
    **{f"{shadow}_p50_ratio": 1.05 for shadow in ("shadow", "slow_shadow", "dead_shadow")},
    **{f"{shadow}_p99_ratio": 1.10 for shadow in ("shadow", "slow_shadow", "dead_shadow")},
    "stage_p99_ms": {"lookup": 5.0, "validation": 2.0, "inference": 12.0, "post": 1.0, "log": 1.0},
    "non_200": 0,
    "normal_share": 0.95,
}


def test_a_round_that_slows_both_sides_leaves_the_ratio_alone() -> None:
    ours = [{"rps": 100}, {"rps": 10}, {"rps": 100}]
    theirs = [{"rps": 50}, {"rps": 5}, {"rps": 50}]

    assert ratio(ours, theirs, "rps") == 2.0


def test_one_odd_round_does_not_move_the_ratio() -> None:
    assert ratio([{"p50": 2}, {"p50": 90}, {"p50": 4}], [{"p50": 1}, {"p50": 1}, {"p50": 2}], "p50") == 2.0


def test_figures_of_the_three_services_name_medians_and_ratios() -> None:
    def runs(rps: float, p99: float, p50: float) -> dict[int, list[dict[str, float]]]:
        one = {"rps": rps, "p50": p50, "p99": p99, "max": 2 * p99}
        return {1: [one] * 3, 16: [one] * 3}

    found = against_others({"ours": runs(300, 5, 2), "stock_bentoml": runs(200, 9, 1), "handwritten": runs(100, 8, 3)})

    assert (found["ratio_vs_stock"], found["ratio_vs_handwritten"], found["p50_ratio_vs_stock_1"]) == (1.5, 3.0, 2.0)
    assert (found["ours_rps_16"], found["stock_bentoml_rps_16"], found["handwritten_rps_16"]) == (300, 200, 100)
    assert found["p99_ms_16"] == {"ours": 5, "stock_bentoml": 9, "handwritten": 8}


def test_a_run_is_compared_with_those_just_before_and_after() -> None:
    def run(p50: float) -> dict[str, float]:
        return {"p50": p50, "p99": 2 * p50}

    # The machine becomes slower all the time; the shadow costs a tenth.
    runs = [(run(1.1 * 2 ** (k + 1)), run(2**k), run(2 ** (k + 2))) for k in range(9)]

    found = beside("shadow", runs)

    assert (found["shadow_p50_ratio"], found["shadow_p99_ratio"]) == (1.1, 1.1)
    assert found["shadow_p50_ratio_95"] == [1.1, 1.1]


def test_the_interval_holds_the_median_in_nineteen_of_twenty() -> None:
    rng = np.random.default_rng(3)
    held = [low <= 1.0 <= high for low, high in (interval(list(rng.lognormal(0, 0.3, 12))) for _ in range(2000))]

    assert 0.95 <= np.mean(held) <= 0.98
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_stages_carry_the_names_of_the_limits_and_only_those() -> None:
    names = ("lookup", "validate", "primary", "fallback", "total")
    runs = [{"stages": {name: {"p99": p99} for name in names}} for p99 in (1.0, 9.0, 1.5)]

    assert stage_p99s(runs) == {"lookup": 1.5, "validation": 1.5, "inference": 1.5}


def test_a_result_on_its_limits_keeps_them() -> None:
    assert faults(KEPT) == []


@pytest.mark.parametrize(
    "missed",
    [
        {"ratio_vs_stock": 0.99},
        {"ratio_vs_handwritten": 1.24},
        {"p50_ratio_vs_stock_1": 2.01},
        {"p99_ms_16": {**KEPT["p99_ms_16"], "stock_bentoml": 9.0}},
        {"p99_ms_16": {**KEPT["p99_ms_16"], "handwritten": 8.0}},
        *({f"{shadow}_p50_ratio": 1.06} for shadow in ("shadow", "slow_shadow", "dead_shadow")),
        *({f"{shadow}_p99_ratio": 1.11} for shadow in ("shadow", "slow_shadow", "dead_shadow")),
        *({"stage_p99_ms": {**KEPT["stage_p99_ms"], stage: 13.0}} for stage in KEPT["stage_p99_ms"]),
        {"stage_p99_ms": {k: v for k, v in KEPT["stage_p99_ms"].items() if k != "log"}},
        {"non_200": 1},
        {"normal_share": 0.94},
    ],
)
def test_one_figure_beyond_its_limit_is_one_fault(missed: dict[str, Any]) -> None:
    assert len(faults(KEPT | missed)) == 1
