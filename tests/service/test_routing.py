"""A request's way to its answer, whatever fails on it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from service.fakes import FakeLookup, FakeRunner
from service.features import Stored
from tests.bundle import NOW
from tests.service.conftest import Stage, stored_fresh

MakeStage = Callable[..., Stage]


def broken(_: Any) -> Any:
    """Raise as a dead dependency does."""
    msg = "connection refused"
    raise ConnectionError(msg)


def without(view: str) -> Callable[[Any], Stored]:
    """Everything found except one view."""
    full = stored_fresh()
    return lambda _: Stored(
        {k: v for k, v in full.values.items() if k != view}, {k: v for k, v in full.event_times.items() if k != view}
    )


def aged(view: str, age: timedelta) -> Callable[[Any], Stored]:
    """Everything fresh except one view."""
    full = stored_fresh()
    return lambda _: Stored(full.values, {**full.event_times, view: NOW - age})


def test_primary_answers_a_good_request_with_normal_confidence(stage: MakeStage) -> None:
    s = stage()

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.prediction, answer.role, answer.model_version) == (0.3, "primary", "7")
    assert (answer.confidence, answer.fallback_reason, answer.violations) == ("normal", None, [])


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (broken, "primary_error"),
        (lambda _: math.nan, "primary_invalid_output"),
        (lambda _: None, "primary_invalid_output"),
        (lambda _: -0.1, "primary_invalid_output"),
        (lambda _: 1.5, "primary_invalid_output"),
        (lambda _: math.inf, "primary_invalid_output"),
    ],
)
def test_fallback_answers_when_the_primary_fails_or_returns_garbage(
    stage: MakeStage, score: Callable[[Any], Any], reason: str
) -> None:
    s = stage(primary=FakeRunner(score))

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.prediction, answer.role, answer.confidence) == (0.2, "fallback", "degraded")
    assert answer.fallback_reason == reason


def test_a_hung_primary_is_given_up_inside_the_deadline(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=30))

    answer = asyncio.run(asyncio.wait_for(s.router.answer(s.request), 5))

    assert (answer.role, answer.fallback_reason) == ("fallback", "primary_timeout")
    assert s.log.records[0]["stages_ms"]["primary"] < 200


def test_an_absent_primary_is_named(stage: MakeStage) -> None:
    s = stage(primary=None)

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.role, answer.fallback_reason) == ("fallback", "primary_absent")


@pytest.mark.parametrize("lookup", [FakeLookup(broken), FakeLookup(stored_fresh, delay_s=30)], ids=["dead", "hung"])
def test_fallback_answers_from_the_request_alone_when_the_store_is_gone(stage: MakeStage, lookup: FakeLookup) -> None:
    fallback = FakeRunner(lambda _: 0.2)
    s = stage(lookup=lookup, fallback=fallback)

    answer = asyncio.run(asyncio.wait_for(s.router.answer(s.request), 5))

    assert (answer.role, answer.fallback_reason) == ("fallback", "store_unavailable")
    (row,) = fallback.rows
    assert (row["origin"], row["dep_hour"]) == ("EWR", 10)
    assert {row[name] for view in s.router._contract.views for name in view.features if name in row} == {None}


def test_the_base_rate_answers_when_both_models_fail(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(broken), fallback=FakeRunner(broken))

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.prediction, answer.role, answer.confidence) == (0.25, "none", "none")
    assert answer.fallback_reason == "both_failed: primary_error, fallback_error"


def test_an_unknown_entity_of_a_degrading_view_sends_the_request_to_the_fallback(stage: MakeStage) -> None:
    s = stage(lookup=FakeLookup(without("carrier_record")))

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.role, answer.fallback_reason) == ("fallback", "features_invalid")
    assert [(v["feature"], v["kind"]) for v in answer.violations] == [("carrier_record", "missing")]


def test_an_unknown_entity_of_a_tolerated_view_leaves_the_primary_marked_degraded(stage: MakeStage) -> None:
    s = stage(lookup=FakeLookup(without("plane_record")))

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.role, answer.confidence, answer.fallback_reason) == ("primary", "degraded", None)
    assert [(v["feature"], v["kind"]) for v in answer.violations] == [("plane_record", "missing")]
    assert s.log.records[0]["vector"]["plane_idle_h"] is None


def test_a_stale_view_is_named_with_age_and_limit(stage: MakeStage) -> None:
    s = stage(lookup=FakeLookup(aged("origin_weather", timedelta(hours=3, minutes=12))))

    answer = asyncio.run(s.router.answer(s.request))

    assert answer.role == "fallback"
    assert answer.violations[0]["message"] == "origin_weather is 3 h 12 min old (limit 3 h); check its feed"


def test_the_shadow_gets_exactly_the_vector_the_primary_got_and_the_log_holds(stage: MakeStage) -> None:
    primary, shadow = FakeRunner(lambda _: 0.3), FakeRunner(lambda _: 0.4, version="9")
    s = stage(primary=primary, shadow=shadow)

    async def run() -> None:
        await s.router.answer(s.request)
        await s.path.close(drain_s=2)

    asyncio.run(run())

    assert primary.rows[0] == shadow.rows[0] == s.log.records[0]["vector"]
    assert s.log.records[0]["shadow_sampled"] is True
    assert [(r["outcome"], r["prediction"], r["model_version"]) for r in s.shadow_log.records] == [("scored", 0.4, "9")]


def test_a_full_disk_stops_no_answer_and_rehearses_nothing_it_cannot_prove(stage: MakeStage) -> None:
    s = stage(shadow=FakeRunner(lambda _: 0.4))
    s.log.broken = True

    answer = asyncio.run(s.router.answer(s.request))

    assert answer.role == "primary"
    assert s.shadow_log.records == []


def test_the_callers_request_id_is_kept_and_an_absent_one_is_made(stage: MakeStage) -> None:
    s = stage()

    given = asyncio.run(s.router.answer({**s.request, "request_id": "abc"}))
    made = asyncio.run(s.router.answer({**s.request, "request_id": None}))

    assert given.request_id == "abc"
    assert len(made.request_id) == 32
    assert [r["request_id"] for r in s.log.records] == ["abc", made.request_id]


@pytest.mark.parametrize("scores", [(broken, broken), (lambda _: 0.3, broken), (broken, lambda _: 0.2)])
def test_every_answer_has_its_record(stage: MakeStage, scores: tuple[Any, Any]) -> None:
    s = stage(primary=FakeRunner(scores[0]), fallback=FakeRunner(scores[1]))

    answer = asyncio.run(s.router.answer(s.request))

    (record,) = s.log.records
    told = {k: getattr(answer, k) for k in ("request_id", "prediction", "role", "confidence", "fallback_reason")}
    assert {k: record[k] for k in told} == told
    assert record["at"] == NOW


def answers(stage: Stage, count: int) -> list[str | None]:
    """Ask one after the other; returns the reasons."""

    async def run() -> list[str | None]:
        return [(await stage.router.answer(stage.request)).fallback_reason for _ in range(count)]

    return asyncio.run(run())


def test_a_failing_primary_is_no_longer_asked(stage: MakeStage) -> None:
    primary = FakeRunner(broken)
    s = stage(primary=primary)

    reasons = answers(s, 40)

    assert reasons == ["primary_error"] * 10 + ["circuit_open"] * 30
    assert len(primary.rows) == 10


def test_a_primary_that_gives_garbage_is_no_longer_asked(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 7.5))

    assert answers(s, 12)[10:] == ["circuit_open"] * 2


def test_a_slow_primary_is_no_longer_asked_though_it_answers(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=0.11))

    reasons = answers(s, 12)

    assert reasons == [None] * 10 + ["circuit_open"] * 2


def test_a_failing_fallback_is_no_longer_asked_either(stage: MakeStage) -> None:
    s = stage(primary=None, fallback=FakeRunner(broken))

    reasons = answers(s, 12)

    assert reasons[0] == "both_failed: primary_absent, fallback_error"
    assert reasons[-1] == "both_failed: primary_absent, fallback_circuit_open"


def test_a_primary_that_is_not_to_be_asked_is_asked_when_nobody_else_can_answer(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(broken), fallback=FakeRunner(broken))
    answers(s, 20)
    s.cast.primary.runner = FakeRunner(lambda _: 0.3)

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.role, answer.confidence, answer.fallback_reason) == ("primary", "normal", None)


def test_a_primary_an_operator_holds_back_is_not_asked_whatever_happens(stage: MakeStage) -> None:
    s = stage(fallback=FakeRunner(broken))
    s.cast.primary.breaker.operate("forced_open")

    answer = asyncio.run(s.router.answer(s.request))

    assert (answer.role, answer.fallback_reason) == ("none", "both_failed: circuit_open, fallback_error")


def test_bad_features_are_no_fault_of_the_primary(stage: MakeStage) -> None:
    s = stage(lookup=FakeLookup(without("carrier_record")))

    reasons = answers(s, 30)

    assert set(reasons) == {"features_invalid"}
    assert s.cast.primary.breaker.counts == (0, 0, 0)


def test_a_caller_who_goes_away_is_no_fault_of_the_primary(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=30), deadline_s=60)

    async def run() -> None:
        task = asyncio.create_task(s.router.answer(s.request))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())

    assert s.cast.primary.breaker.counts == (0, 0, 0)


def test_another_cast_answers_from_the_next_request_on(stage: MakeStage) -> None:
    s = stage()
    before = asyncio.run(s.router.answer(s.request))

    s.cast.primary.runner = FakeRunner(lambda _: 0.9, version="8")
    after = asyncio.run(s.router.answer(s.request))

    assert [(a.prediction, a.model_version) for a in (before, after)] == [(0.3, "7"), (0.9, "8")]


def test_stages_are_told_logged_and_traced(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(broken))

    answer = asyncio.run(s.router.answer(s.request, parent="00-1-2-01"))

    assert list(answer.stages_ms) == ["lookup", "validate", "primary", "fallback", "post", "log", "total"]
    assert "stages_ms" not in answer.told()
    assert set(s.log.records[0]["stages_ms"]) == {"lookup", "validate", "primary", "fallback", "post", "total"}
    (seen,) = s.seen_trips
    assert [name for name, _, _ in seen.stages] == ["lookup", "validate", "primary", "fallback", "post", "log"]
    assert (seen.traceparent, seen.role, seen.failed) == ("00-1-2-01", "fallback", False)
    begins = [begin for _, begin, _ in seen.stages]
    assert begins == sorted(begins)


def test_rows_of_a_batch_have_more_time_and_are_not_slow_for_it(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=0.25))

    async def run() -> list[str | None]:
        return [(await s.router.answer(s.request, patience=5.0)).fallback_reason for _ in range(11)]

    assert asyncio.run(run()) == [None] * 11
