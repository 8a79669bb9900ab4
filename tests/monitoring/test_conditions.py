"""Evidence split by what happened to a request: failures of both roles, whole and broken vectors, clocks ahead."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from monitoring.compare import Options, clock_skew, compare
from monitoring.evidence import ClockSkew, Evidence
from monitoring.failures import FailureRate
from monitoring.pairing import Paired
from monitoring.quality import Freshness
from monitoring.report import data_notes
from tests.monitoring.logs import Logs, campaign, contract, drop

Gather = Callable[[Logs], Evidence]
Line = dict[str, Any]
ROWS, DAYS = 1400, 14


def fell_back(line: Line, reason: str) -> None:
    """Have the fallback answer instead of the primary."""
    line |= {"role": "fallback", "model_version": "8", "model_digest": "f" * 64, "fallback_reason": reason}


def rates(evidence: Evidence) -> dict[str, FailureRate]:
    """By kind."""
    return {rate.kind: rate for rate in evidence.failures}


def parts(evidence: Evidence) -> dict[str, Freshness]:
    """By name."""
    return {part.name: part for part in evidence.freshness}


def test_each_roles_failures_are_counted_by_kind_on_what_both_were_asked(gather: Gather) -> None:
    logs = campaign(ROWS, days=DAYS)
    for line in logs.predictions[:30]:
        fell_back(line, "primary_timeout")
    fell_back(logs.predictions[30], "both_failed: primary_error, fallback_timeout")
    for line in logs.shadow[100:110]:
        drop(line, "error")
    drop(logs.shadow[0], "timeout")
    logs.shadow[200]["prediction"] = 1.5

    found = rates(gather(logs))

    assert {kind: (rate.primary, rate.shadow) for kind, rate in found.items()} == {
        "error": (1, 10), "timeout": (30, 1), "invalid_output": (0, 1), "any": (31, 12),
    }  # fmt: skip
    assert {rate.rows for rate in found.values()} == {ROWS}
    assert found["any"].difference.value == pytest.approx((31 - 12) / ROWS)


def test_who_was_not_asked_did_not_fail(gather: Gather) -> None:
    logs = campaign(ROWS, days=DAYS)
    for line in logs.predictions[:30]:
        fell_back(line, "features_invalid")
    for line in logs.shadow[50:70]:
        drop(line, "queue_full")

    found = rates(gather(logs))

    assert {(rate.primary, rate.shadow, rate.rows) for rate in found.values()} == {(0, 0, ROWS - 50)}


def test_a_shadow_that_fails_more_on_most_days_has_an_interval_on_that_side(gather: Gather) -> None:
    logs = campaign(ROWS, days=DAYS)
    for line in logs.shadow[::20]:
        drop(line, "error")

    found = rates(gather(logs))["error"].difference

    assert found.high is not None
    assert found.high < 0


def test_whole_stale_and_fallback_rows_are_measured_apart(gather: Gather) -> None:
    logs = campaign(ROWS, days=DAYS)
    late = {"feature": "temp", "kind": "stale", "message": "temp is 3 h old"}
    for line in logs.predictions[:700:2]:
        line["violations"] = [late]
    for line in logs.predictions[1:700:10]:
        fell_back(line, "primary_error")

    found = parts(gather(logs))

    assert {name: part.rows for name, part in found.items()} == {"fresh": 980, "stale": 350, "fallback": 70}
    assert sum(part.rows for part in found.values()) == ROWS
    assert {name: part.pairs for name, part in found.items()} == {"fresh": 980, "stale": 350, "fallback": 70}


def test_a_shadow_worse_on_broken_vectors_only_shows_there(gather: Gather) -> None:
    rng = np.random.default_rng(3)
    logs = campaign(ROWS, days=DAYS, primary_noise=0.3, shadow_noise=0.3)
    for prediction, line in zip(logs.predictions[::2], logs.shadow[::2], strict=True):
        prediction["violations"] = [{"feature": "temp", "kind": "missing", "message": "temp is missing"}]
        line["prediction"] = float(rng.random())

    found = parts(gather(logs))
    loss = {name: found[name].measures[0] for name in ("fresh", "stale")}

    assert {measure.name for measure in loss.values()} == {"log_loss"}
    assert loss["stale"].shadow - loss["stale"].answered > 0.1
    assert abs(loss["fresh"].shadow - loss["fresh"].answered) < 0.05
    stale, fresh = found["stale"].disagreement, found["fresh"].disagreement
    assert stale is not None
    assert fresh is not None
    assert stale > 2 * fresh


def test_rows_dated_later_than_the_clock_are_counted_and_left_out(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(ROWS, days=DAYS)
    now = logs.predictions[-101]["at"]
    paired = pair(logs)

    told = compare(paired, contract(), Options(now=now))

    assert (told.clock.predictions, told.predictions) == (100, ROWS - 100)
    assert told.clock.labels >= 100
    assert told.clock.furthest_s > 0
    assert told.as_of == now


def test_when_most_rows_are_dated_later_it_is_the_clock_that_is_wrong(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(ROWS, days=DAYS)
    paired = pair(logs)

    told = compare(paired, contract(), Options(now=logs.predictions[0]["at"] - timedelta(days=300)))

    assert told.clock == ClockSkew()
    assert told.predictions == ROWS


def test_a_clock_behind_by_nothing_says_nothing(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(200, days=DAYS)
    frame = pair(logs).frame

    assert clock_skew(frame, frame["known_at"].max()) == ClockSkew()
    assert clock_skew(frame, None) == ClockSkew()


def test_a_slice_that_was_redacted_is_told(gather: Gather) -> None:
    (name, *_) = contract().slices
    logs = campaign(ROWS, days=DAYS)
    for line in logs.predictions[:40]:
        line["redacted"] = [name]

    told = gather(logs)

    assert told.redacted == {name: 40}
    assert (f"predictions with {name} redacted: in none of its slices", 40) in data_notes(told)
