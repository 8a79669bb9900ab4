"""Which rows count, and what became of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.campaign import ledger, newest_campaign
from monitoring.compare import Options, compare
from monitoring.evidence import Evidence, Version
from monitoring.pairing import Paired
from service.errors import DataError
from tests.monitoring.logs import PRIMARY, SHADOW, START, Logs, campaign, contract, drop, shadow_line

Gather = Callable[[Logs], Evidence]
REASONS = ("queue_full", "timeout", "error", "invalid_output", "absent", "shutdown")


def test_every_sampled_request_is_in_the_ledger_once(gather: Gather) -> None:
    logs = campaign(200)
    for i, reason in enumerate(REASONS):
        for line in logs.shadow[10 * i : 10 * i + i + 1]:
            drop(line, reason)
    del logs.shadow[150:157]
    logs.predictions[190]["shadow_sampled"] = False
    del logs.shadow[-10]

    found = gather(logs).ledger

    assert found.dropped == {reason: i + 1 for i, reason in enumerate(REASONS)}
    assert (found.sampled, found.unaccounted) == (199, 7)
    assert found.sampled == found.scored + sum(found.dropped.values()) + found.unaccounted


@pytest.mark.parametrize("score", [None, -0.1, 1.5])
def test_a_scored_line_without_a_probability_is_an_invalid_output(gather: Gather, score: float | None) -> None:
    logs = campaign(50)
    logs.shadow[3]["prediction"] = score

    found = gather(logs).ledger

    assert found.dropped == {"invalid_output": 1}
    assert found.scored == 49


def test_repeated_lines_count_once_and_are_said(gather: Gather) -> None:
    logs = campaign(50)
    logs.predictions.append(logs.predictions[4])
    logs.shadow += [logs.shadow[4], shadow_line("ghost", START, 0.5)]
    logs.predictions[7]["shadow_sampled"] = False

    found = gather(logs)

    assert (found.predictions, found.ledger.sampled) == (50, 49)
    assert found.scores is not None
    assert found.scores.rows == 49
    notes = found.notes
    assert (notes.duplicate_predictions, notes.duplicate_shadow) == (1, 1)
    assert (notes.orphan_shadow, notes.unasked_shadow) == (1, 1)


def test_the_fallbacks_answers_are_in_the_ledger_but_not_compared(gather: Gather) -> None:
    logs = campaign(60)
    for line in logs.predictions[:20]:
        line.update(role="fallback", model_version="9", model_digest="f" * 64, fallback_reason="features_invalid")

    found = gather(logs)

    assert found.primary == Version(*PRIMARY)
    assert found.ledger.scored == 60
    assert found.scores is not None
    assert found.scores.rows == 40
    assert found.fallback_reasons == {"features_invalid": 20}


def test_only_the_newest_pair_is_compared_and_the_rest_is_counted(gather: Gather) -> None:
    logs = campaign(100)
    for line in logs.shadow[:30]:
        line.update(model_version="1.9", model_digest="c" * 64)
    for line in logs.predictions[:20]:
        line.update(model_version="0.9", model_digest="d" * 64)
    drop(logs.shadow[28], "timeout")
    drop(logs.shadow[31], "timeout")

    found = gather(logs)

    assert (found.primary, found.shadow) == (Version(*PRIMARY), Version(*SHADOW))
    assert found.predictions == 70
    assert found.ledger.dropped == {"timeout": 1}
    assert sum(found.other_versions.values()) == 30
    assert found.other_versions["primary 0.9, shadow 1.9"] == 20


def test_a_returned_version_does_not_bring_its_earlier_rows(gather: Gather) -> None:
    logs = campaign(90)
    for line in logs.shadow[30:60]:
        line.update(model_version="3", model_digest="c" * 64)

    found = gather(logs)

    assert found.shadow == Version(*SHADOW)
    assert found.predictions == 30


def test_lost_rows_are_compared_with_kept_ones(gather: Gather) -> None:
    fair, hard = campaign(600), campaign(600)
    for i in range(0, 600, 6):
        drop(fair.shadow[i], "queue_full")
    for prediction, line in zip(hard.predictions, hard.shadow, strict=True):
        if prediction["prediction"] > 0.6:
            drop(line, "queue_full")

    fair_lost, hard_lost = gather(fair).lost_traffic, gather(hard).lost_traffic

    assert fair_lost.lost == 100
    assert fair_lost.score_shift_low is not None
    assert fair_lost.score_shift_low < 0.05
    assert hard_lost.score_shift_low is not None
    assert hard_lost.score_shift_low > 1
    assert hard_lost.primary_loss_lost is not None


def test_without_predictions_the_error_says_what_to_do(gather: Gather) -> None:
    with pytest.raises(DataError, match="no predictions; send requests or run `make replay`"):
        gather(Logs())


def test_without_a_shadow_the_error_says_what_to_do(gather: Gather) -> None:
    logs = campaign(5)
    logs.shadow.clear()

    with pytest.raises(DataError, match="none of 5 predictions has a shadow record; seat a shadow"):
        gather(logs)


def test_a_shadow_that_never_scored_is_compared_all_the_same(gather: Gather) -> None:
    logs = campaign(50)
    for line in logs.shadow:
        drop(line, "error")

    found = gather(logs)

    assert found.shadow == Version(None, None)
    assert found.ledger.dropped == {"error": 50}
    assert found.performance is None


def test_an_interval_for_all_slices_at_once_is_wider_than_for_each_alone(gather: Gather) -> None:
    found = gather(campaign(4000)).performance

    assert found is not None
    assert len(found.slices) == 8
    for entry in found.slices:
        alone, joint = entry.difference, (entry.joint_low, entry.joint_high)
        assert alone.low is not None
        assert alone.high is not None
        assert joint[0] is not None
        assert joint[1] is not None
        assert joint[0] < alone.low < alone.value < alone.high < joint[1]


def test_rows_of_a_day_that_is_not_over_are_not_scored(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(280, days=14)
    for lines in (logs.predictions, logs.shadow, logs.labels):
        del lines[125:]

    found = compare(pair(logs), contract(), Options(now=START + timedelta(days=7, hours=6)))

    assert found.performance is not None
    assert found.performance.rows == found.label_coverage.labelled == 110
    assert found.label_coverage.immature == 15


def test_a_clock_past_the_logs_end_makes_their_last_predictions_mature(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(280, days=14)
    now = datetime(2014, 1, 1, tzinfo=UTC)

    found = compare(pair(logs), contract(), Options(now=now))
    earlier = compare(pair(logs), contract(), Options(now=datetime(2000, 1, 1, tzinfo=UTC)))

    assert (found.label_coverage.immature, found.label_coverage.labelled) == (0, 280)
    assert earlier == compare(pair(logs), contract())


def test_immature_predictions_are_not_scored(pair: Callable[[Logs], Paired]) -> None:
    logs = campaign(280, days=14, delay=timedelta(hours=1))

    found = compare(pair(logs), contract())

    assert found.label_coverage.immature > 0
    assert found.performance is not None
    assert found.performance.rows == found.label_coverage.labelled == 280 - found.label_coverage.immature


rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["scored", "dropped", None]), st.sampled_from([*REASONS, None]),
              st.one_of(st.none(), st.floats(-1, 2))),
    max_size=40,
)  # fmt: skip


@given(rows)
def test_the_ledger_always_adds_up(entries: list[tuple[bool, str | None, str | None, float | None]]) -> None:
    frame = pd.DataFrame(entries, columns=["shadow_sampled", "shadow_outcome", "shadow_reason", "shadow_prediction"])
    frame = frame.astype({"shadow_sampled": "boolean", "shadow_prediction": "float64"})
    frame[["shadow_outcome", "shadow_reason"]] = frame[["shadow_outcome", "shadow_reason"]].astype(object)

    found = ledger(frame)

    assert found.sampled == sum(entry[0] for entry in entries)
    assert found.sampled == found.scored + sum(found.dropped.values()) + found.unaccounted
    assert found.scored == sum(s and o == "scored" and p is not None and 0 <= p <= 1 for s, o, _, p in entries)
    assert found.unaccounted == sum(s and o is None for s, o, _, _ in entries)


pairs = st.lists(
    st.tuples(st.sampled_from(["p", "q", None]), st.sampled_from(["s", "t", None])), min_size=1, max_size=20
)


@given(pairs)
def test_a_campaign_never_mixes_models(models: list[tuple[str | None, str | None]]) -> None:
    frame = pd.DataFrame(models, columns=["model_digest", "shadow_digest"], dtype=object)
    frame["at"] = pd.to_datetime([START + timedelta(minutes=i) for i in range(len(frame))], utc=True)
    frame["role"] = frame["model_digest"].notna().map({True: "primary", False: "none"})
    frame["model_version"], frame["shadow_version"] = frame["model_digest"], frame["shadow_digest"]

    found = newest_campaign(frame)

    assert found.frame["model_digest"].dropna().nunique() <= 1
    assert found.frame["shadow_digest"].dropna().nunique() <= 1
    assert len(found.frame) + sum(found.other_versions.values()) == len(frame)
