"""A request's way while a split runs: the treated get the other model's answer, and always some answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.fakes import FakeLookup, FakeRunner
from service.features import Stored
from service.routing import Answer
from service.split import Split, assigned
from tests.service.conftest import Stage

MakeStage = Callable[..., Stage]
SPLIT = Split(
    "try", "shadow", "", 0.5, "digest-7", "digest-9", "label", "higher", 0.0, datetime(2013, 10, 1, tzinfo=UTC), 3
)


@dataclass
class Fixed:
    """A split that does not move."""

    current: Split | None


def broken(_: Any) -> Any:
    """Raise as a dead runner does."""
    msg = "connection refused"
    raise ConnectionError(msg)


def of_arm(arm: str, split: Split = SPLIT) -> str:
    """A request id that falls into an arm."""
    ids = (f"r{i}" for i in range(1000))
    return next(i for i in ids if (drawn := assigned(split, i, {})) is not None and drawn.arm == arm)


def answered(s: Stage, arm: str) -> Answer:
    """Answer one request of an arm."""
    request = {**s.request, "request_id": of_arm(arm)}
    return asyncio.run(asyncio.wait_for(s.router.answer(request), 5))


def other(**more: Any) -> FakeRunner:
    """The treated model."""
    return FakeRunner(lambda _: 0.4, version="9", **more)


def test_the_treated_get_the_other_models_answer(stage: MakeStage) -> None:
    primary = FakeRunner(lambda _: 0.3, version="7")
    s = stage(primary=primary, shadow=other(), splits=Fixed(SPLIT))

    answer = answered(s, "treatment")

    assert (answer.prediction, answer.role, answer.model_version) == (0.4, "shadow", "9")
    assert (answer.confidence, answer.fallback_reason) == ("normal", None)
    assert primary.rows == []


def test_the_control_is_answered_and_rehearsed_as_ever(stage: MakeStage) -> None:
    s = stage(shadow=other(), splits=Fixed(SPLIT))

    answer = answered(s, "control")

    assert (answer.prediction, answer.role) == (0.3, "primary")
    assert (s.log.records[0]["arm"], s.log.records[0]["shadow_sampled"]) == ("control", True)


def test_the_record_says_who_was_drawn_into_what(stage: MakeStage) -> None:
    s = stage(shadow=other(), splits=Fixed(SPLIT))

    answered(s, "treatment")

    (record,) = s.log.records
    assert {key: record[key] for key in ("arm", "split", "split_revision", "split_share", "role", "model_digest")} == {
        "arm": "treatment", "split": "try", "split_revision": 3, "split_share": 0.5, "role": "shadow",
        "model_digest": "digest-9",
    }  # fmt: skip
    assert int(record["split_unit"], 16) < 0.5 * 2**64
    assert record["shadow_sampled"] is False
    assert record["stages_ms"]["shadow"] >= 0


@pytest.mark.parametrize("splits", [None, Fixed(None)], ids=["never", "not now"])
def test_without_a_split_nothing_changes(stage: MakeStage, splits: Fixed | None) -> None:
    s = stage(shadow=other(), splits=splits)

    answer = answered(s, "treatment")

    assert (answer.role, s.log.records[0]["arm"], "split" in s.log.records[0]) == ("primary", None, False)


@pytest.mark.parametrize(
    ("runner", "reason"),
    [
        (FakeRunner(broken), "shadow_error"),
        (FakeRunner(lambda _: math.nan), "shadow_invalid_output"),
        (FakeRunner(lambda _: 0.4, delay_s=30), "shadow_timeout"),
        (None, "shadow_absent"),
    ],
    ids=["broken", "garbage", "hung", "absent"],
)
def test_when_the_treated_model_fails_the_primary_answers_in_time_and_the_arm_stays(
    stage: MakeStage, runner: FakeRunner | None, reason: str
) -> None:
    # It takes its time: what the treated model wastes must not be all there is.
    s = stage(primary=FakeRunner(lambda _: 0.3, version="7", delay_s=0.01), shadow=runner, splits=Fixed(SPLIT))

    answer = answered(s, "treatment")

    assert (answer.prediction, answer.role, answer.confidence) == (0.3, "primary", "normal")
    assert answer.fallback_reason == reason
    assert (s.log.records[0]["arm"], s.log.records[0]["role"]) == ("treatment", "primary")
    assert s.log.records[0]["stages_ms"]["total"] < 200


def test_a_slot_this_service_does_not_run_leaves_the_primary(stage: MakeStage) -> None:
    s = stage(shadow=other(), splits=Fixed(replace(SPLIT, slot="shadow_9")))

    answer = answered(s, "treatment")

    assert (answer.role, answer.fallback_reason) == ("primary", "shadow_9_absent")


def test_the_fallback_answers_the_treated_when_both_others_fail(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(broken), shadow=FakeRunner(broken), splits=Fixed(SPLIT))

    answer = answered(s, "treatment")

    assert (answer.role, answer.confidence, answer.fallback_reason) == ("fallback", "degraded", "primary_error")
    assert s.log.records[0]["arm"] == "treatment"


def test_the_base_rate_answers_the_treated_when_all_fail(stage: MakeStage) -> None:
    dead = FakeRunner(broken)
    s = stage(primary=dead, fallback=dead, shadow=dead, splits=Fixed(SPLIT))

    answer = answered(s, "treatment")

    assert (answer.role, answer.prediction) == ("none", 0.25)


def test_unusable_features_send_the_treated_to_the_fallback_like_everybody(stage: MakeStage) -> None:
    treated = other()
    s = stage(lookup=FakeLookup(lambda _: Stored()), shadow=treated, splits=Fixed(SPLIT))

    answer = answered(s, "treatment")

    assert (answer.role, answer.fallback_reason, treated.rows) == ("fallback", "features_invalid", [])


def test_a_request_without_a_key_is_answered_by_the_primary_and_in_no_arm(stage: MakeStage) -> None:
    s = stage(shadow=other(), splits=Fixed(replace(SPLIT, key="tailnum", share=1.0)))

    answer = asyncio.run(s.router.answer({**s.request, "tailnum": None}))

    assert (answer.role != "shadow", s.log.records[0]["arm"]) == (True, None)


def test_arms_are_counted_by_who_answered(stage: MakeStage) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("understudy_split_total", {"arm": "treatment", "role": "primary"}) or 0.0

    s = stage(shadow=FakeRunner(broken), splits=Fixed(SPLIT))
    before = count()

    answered(s, "treatment")

    assert count() == before + 1
