"""What is decided, and the reason named first."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.compare import compare
from monitoring.criteria import Criteria, Criterion, default_criteria
from monitoring.evidence import Evidence, Version
from monitoring.measures import MEASURES
from monitoring.pairing import Paired
from monitoring.report import as_json, headline, page
from monitoring.verdict import Verdict, decide
from tests.monitoring.logs import PRIMARY, SHADOW, START, Logs, assemble, campaign, contract, drop, sigmoid

Gather = Callable[[Logs], Evidence]


def first(verdict: Verdict) -> tuple[str, str, str]:
    """Decision, and name and outcome of the reason given first."""
    return verdict.decision, verdict.reasons[0].criterion, verdict.reasons[0].outcome


def test_a_better_shadow_is_promoted_for_its_gain(gather: Gather) -> None:
    verdict = decide(gather(campaign(4000)))

    assert first(verdict) == ("promote", "gain", "pass")
    assert (verdict.primary, verdict.shadow) == (Version(*PRIMARY), Version(*SHADOW))
    assert all(reason.outcome != "fail" for reason in verdict.reasons)


@pytest.mark.parametrize("seed", range(4))
def test_an_equal_shadow_is_held_for_want_of_a_gain(gather: Gather, seed: int) -> None:
    evidence = gather(campaign(4000, primary_noise=0.3, shadow_noise=0.3, seed=seed))

    assert first(decide(evidence)) == ("hold", "gain", "fail")
    assert "no evidence that the shadow is better" in headline(decide(evidence), evidence)


def test_the_same_model_twice_is_held(gather: Gather) -> None:
    logs = campaign(4000)
    for prediction, line in zip(logs.predictions, logs.shadow, strict=True):
        line["prediction"] = prediction["prediction"]

    assert first(decide(gather(logs))) == ("hold", "gain", "fail")


def test_too_few_rows_are_held_however_good_they_look(gather: Gather) -> None:
    assert first(decide(gather(campaign(900)))) == ("hold", "paired_rows", "fail")


def test_too_short_a_time_is_held(gather: Gather) -> None:
    verdict = decide(gather(campaign(6000, days=4)))

    assert first(verdict) == ("hold", "duration", "fail")
    assert [r.criterion for r in verdict.deciding][:2] == ["duration", "blocks"]


def test_no_labels_at_all_is_held(gather: Gather) -> None:
    logs = campaign(3000)
    logs.labels.clear()

    assert first(decide(gather(logs))) == ("hold", "paired_rows", "fail")


def test_missing_labels_are_held(gather: Gather) -> None:
    logs = campaign(6000)
    del logs.labels[::2]

    assert first(decide(gather(logs))) == ("hold", "label_coverage", "fail")


def test_a_worse_shadow_is_rejected_for_its_ranking(gather: Gather) -> None:
    verdict = decide(gather(campaign(4000, primary_noise=0.4, shadow_noise=1.4)))

    assert first(verdict) == ("reject", "auc_harm", "fail")
    assert "log_loss_harm" in [reason.criterion for reason in verdict.deciding]


def test_an_overconfident_shadow_is_rejected(gather: Gather) -> None:
    logs = campaign(4000, primary_noise=0.4, shadow_noise=0.4)
    for line in logs.shadow:
        odds = np.log(line["prediction"] / (1 - line["prediction"]))
        line["prediction"] = float(sigmoid(np.asarray(3 * odds)))

    assert first(decide(gather(logs))) == ("reject", "overconfidence", "fail")


def test_a_shadow_with_invalid_outputs_is_rejected_for_them(gather: Gather) -> None:
    logs = campaign(4000)
    for line in logs.shadow[::33]:
        drop(line, "invalid_output")

    assert first(decide(gather(logs))) == ("reject", "invalid_outputs", "fail")


def test_a_shadow_better_only_where_hard_rows_were_lost_is_held_for_it(gather: Gather) -> None:
    logs = campaign(5000)
    for prediction, line in zip(logs.predictions, logs.shadow, strict=True):
        if prediction["prediction"] > 0.55:
            drop(line, "queue_full")

    assert first(decide(gather(logs))) == ("hold", "lost_rows_differ", "fail")


def test_a_few_lost_hard_rows_are_enough_to_hold(gather: Gather) -> None:
    logs = campaign(5000)
    hardest = sorted(range(5000), key=lambda i: -logs.predictions[i]["prediction"])[:200]
    for i in hardest:
        drop(logs.shadow[i], "timeout" if i % 10 == 0 else "queue_full")

    verdict = decide(gather(logs))

    assert first(verdict) == ("hold", "lost_rows_differ", "fail")


def test_lost_rows_like_the_others_are_held_only_for_their_number(gather: Gather) -> None:
    logs = campaign(5000)
    for line in logs.shadow[::12]:
        drop(line, "queue_full")

    assert first(decide(gather(logs))) == ("hold", "coverage", "fail")


def test_a_failing_shadow_is_held(gather: Gather) -> None:
    logs = campaign(5000)
    for line in logs.shadow[::50]:
        drop(line, "error")

    assert first(decide(gather(logs))) == ("hold", "shadow_errors", "fail")


def test_vanished_shadow_lines_are_held(gather: Gather) -> None:
    logs = campaign(5000)
    del logs.shadow[::60]

    assert first(decide(gather(logs))) == ("hold", "unaccounted", "fail")


def test_better_overall_but_worse_for_one_slice_is_rejected_for_the_slice(gather: Gather) -> None:
    logs = campaign(8000, primary_noise=1.0, shadow_noise=0.2)
    for prediction, line in zip(logs.predictions, logs.shadow, strict=True):
        if prediction["vector"]["carrier"] == "EV":
            line["prediction"] = min(1.0, 1 - line["prediction"])

    evidence = gather(logs)

    assert evidence.performance is not None
    gain = evidence.performance.metric("log_loss")
    assert gain is not None
    assert gain.difference.value > -0.2
    assert any(s.value == "EV" and s.joint_high is not None and s.joint_high < 0 for s in evidence.performance.slices)
    assert "slice_harm" in [reason.criterion for reason in decide(evidence).reasons if reason.outcome == "fail"]


def test_a_small_slices_harm_is_the_first_reason(gather: Gather) -> None:
    logs = campaign(8000, primary_noise=1.2, shadow_noise=0.2)
    for prediction, line in zip(logs.predictions[::16], logs.shadow[::16], strict=True):
        prediction["vector"]["carrier"] = "ZZ"
        line["prediction"] = 1 - line["prediction"]

    assert first(decide(gather(logs))) == ("reject", "slice_harm", "fail")


@pytest.mark.parametrize(("factor", "criterion"), [(1.2, "gain"), (4.0, "latency")])
def test_a_slow_shadow_is_held_for_its_latency(gather: Gather, factor: float, criterion: str) -> None:
    logs = campaign(4000)
    for line in logs.shadow:
        line["latency_ms"] *= factor

    assert decide(gather(logs)).reasons[0].criterion == criterion


def test_calls_of_many_rows_are_not_held_against_the_shadow(gather: Gather) -> None:
    logs = campaign(4000)
    for line in logs.shadow[::2]:
        line.update(batch=32, latency_ms=40.0)

    assert decide(gather(logs)).decision == "promote"


def test_scores_unlike_the_primarys_are_held(gather: Gather) -> None:
    rng = np.random.default_rng(0)
    noise = sigmoid(rng.normal(-1, 1, 4000))
    truth = (rng.random(4000) < noise).astype(float)
    logs = assemble(rng, rng.permutation(noise), noise, truth, delay=timedelta(hours=8))

    assert first(decide(gather(logs))) == ("hold", "score_correlation", "fail")


def test_a_shadow_that_knew_the_labels_is_held_when_its_gain_fades(gather: Gather) -> None:
    logs = campaign(4000)
    for i, line in enumerate(logs.shadow):
        known = max(0.0, 1 - i / 1600)
        odds = np.log(line["prediction"] / (1 - line["prediction"])) + 2 * known * (2 * logs.labels[i]["label"] - 1)
        line["prediction"] = float(sigmoid(np.asarray(odds)))

    assert first(decide(gather(logs))) == ("hold", "gain_fades", "fail")


def test_a_shadow_better_than_plausible_is_held(gather: Gather) -> None:
    logs = campaign(4000)
    for line, label in zip(logs.shadow, logs.labels, strict=True):
        line["prediction"] = 0.9 if label["label"] else 0.1

    assert first(decide(gather(logs))) == ("hold", "too_good", "fail")


def test_many_changed_decisions_are_held_unless_the_primary_changes_them_itself(
    pair: Callable[[Logs], Paired],
) -> None:
    paired = pair(campaign(4000, primary_noise=1.6, shadow_noise=0.6))
    rng = np.random.default_rng(1)
    noisy = paired.frame.assign(prediction_again=rng.permutation(paired.frame["prediction"]))

    alone = decide(compare(paired, contract()))
    beyond = decide(compare(Paired(noisy, paired.notes), contract()))

    assert first(alone) == ("hold", "disagreement", "fail")
    assert beyond.decision == "promote"


def test_lost_rows_that_differ_only_in_their_truth_are_held(gather: Gather) -> None:
    logs = campaign(5000)
    wrong = sorted(range(5000), key=lambda i: -abs(logs.shadow[i]["prediction"] - logs.labels[i]["label"]))
    for i in wrong[:150]:
        drop(logs.shadow[i], "queue_full")

    verdict = decide(gather(logs))

    assert first(verdict) == ("hold", "lost_rows_differ", "fail")
    assert verdict.reasons[0].detail.startswith("primary's log loss")


def test_a_verdict_names_what_it_holds_for_and_for_how_long(gather: Gather) -> None:
    evidence = gather(campaign(2500))

    verdict = decide(evidence)

    assert verdict.contract == contract().digest
    assert verdict.service_versions == ("0.1.0",)
    assert (verdict.campaign, verdict.opened) == (evidence.campaign, START)
    assert (verdict.evidence, verdict.criteria) == (evidence.digest, default_criteria().digest)
    assert verdict.expires_at - verdict.decided_at == timedelta(days=7)


def test_the_same_evidence_gives_the_same_verdict_to_the_last_digit(gather: Gather) -> None:
    assert decide(gather(campaign(2500))).digest == decide(gather(campaign(2500))).digest
    assert decide(gather(campaign(2500))).digest != decide(gather(campaign(2500, seed=8))).digest


def test_a_campaign_keeps_its_name_while_it_grows_and_another_shadow_gets_another(gather: Gather) -> None:
    logs, other = campaign(400), campaign(400)
    for line in other.shadow:
        line["model_digest"] = "c" * 64
    grown = gather(logs)
    for lines in (logs.predictions, logs.shadow, logs.labels):
        del lines[300:]

    assert gather(logs).campaign == grown.campaign
    assert gather(other).campaign != grown.campaign


def test_every_reason_links_to_a_section_of_the_page(gather: Gather) -> None:
    evidence = gather(campaign(2500))
    verdict = decide(evidence)

    html = page(verdict, evidence)

    assert all(f'<section id="{reason.link.partition("#")[2]}">' in html for reason in verdict.reasons)


def test_every_reason_names_value_limit_and_the_way_out(gather: Gather) -> None:
    verdict = decide(gather(campaign(900)))

    assert verdict.reasons[0].message == (
        "Requests with both scores and a mature label: 804 (at least 2,000): "
        "too few requests have both scores and a label; let the shadow run on, or deliver the labels"
    )


def test_own_criteria_replace_the_default_ones(gather: Gather) -> None:
    one = Criterion(name="paired_rows", kind="evidence", direction="at_least", limit=100)

    verdict = decide(gather(campaign(900)), Criteria(items=(one,)))

    assert [reason.criterion for reason in verdict.reasons] == ["paired_rows"]
    assert verdict.decision == "promote"


def test_a_typo_in_a_criterion_is_an_error() -> None:
    with pytest.raises(ValidationError, match="citical"):
        Criterion.model_validate({"name": "blocks", "kind": "evidence", "direction": "above", "limit": 1, "citical": 1})


def test_every_default_criterion_has_a_measure() -> None:
    names = [item.name for item in default_criteria().items]

    # Judged of rehearsals alone, whatever the criteria.
    assert set(names) == set(MEASURES) - {"offline", "declared", "age"}
    assert len(names) == len(set(names))


def test_everything_fits_in_strict_json(gather: Gather) -> None:
    evidence = gather(campaign(300))

    text = json.dumps(as_json(decide(evidence), evidence), allow_nan=False)

    assert json.loads(text)["evidence"]["ledger"]["coverage"] == 1.0
    assert json.loads(text)["verdict"]["shadow"]["digest"] == SHADOW[1]
