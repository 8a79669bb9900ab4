"""What a split's verdict says, from logs as the service writes them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring.split_job import gather, main
from monitoring.split_report import as_json, page, summary
from monitoring.split_units import Question, draws
from monitoring.split_verdict import decide
from service.errors import DataError, NotReady
from service.split import arm_of, draw
from service.split_file import move_split, read_split
from tests.monitoring.logs import contract
from tests.monitoring.splits import OPENED, SPLIT, Outcome, make_split, rate

BY_REQUEST = replace(SPLIT, key="", window_s=0.0)
RAMP = ((0.01, 2), (0.05, 2), (0.25, 3), (0.5, 5))


def trend(effect: float = 0.0) -> Outcome:
    """An outcome that rises from 10 % to 50 % while the split runs."""
    return lambda rng, passed, treated: float(rng.random() < 0.1 + 0.4 * passed + effect * treated)


def test_a_split_without_effect_is_held_for_want_of_evidence(tmp_path: Path) -> None:
    verdict = decide(make_split(tmp_path).gathered())

    assert verdict.decision == "hold"
    assert [reason.criterion for reason in verdict.deciding] == ["gain"]


def test_a_gain_is_promoted_naming_both_models_and_the_split(tmp_path: Path) -> None:
    found = make_split(tmp_path, outcome=rate(0.35, -0.15)).gathered()

    verdict = decide(found)

    assert (verdict.decision, verdict.campaign) == ("promote", "1-2")
    assert (verdict.primary.digest, verdict.shadow.digest) == ("a" * 64, "b" * 64)
    assert (verdict.primary.version, verdict.shadow.version) == ("1", "2")
    assert verdict.deciding[0].link == "split.html#effect"
    assert found.difference == pytest.approx(-0.15, abs=0.04)
    assert found.high is not None
    assert found.high < 0


def test_a_harm_is_rejected(tmp_path: Path) -> None:
    verdict = decide(make_split(tmp_path, outcome=rate(0.3, 0.15)).gathered())

    assert verdict.decision == "reject"
    assert verdict.reasons[0].criterion == "harm"


@pytest.mark.parametrize("split", [SPLIT, BY_REQUEST], ids=["keys", "requests"])
def test_a_ramp_beside_a_trend_shows_no_effect_where_pooled_arms_would(tmp_path: Path, split: Any) -> None:
    found = make_split(tmp_path, RAMP, outcome=trend(), split=split, per_day=400).gathered()

    assert found.control_mean is not None
    assert found.treatment_mean is not None
    assert found.treatment_mean - found.control_mean > 0.05
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    assert max(found.gain, found.harm) < 20
    assert found.sample_ratio < 100


def test_the_effect_behind_a_trend_is_found_through_the_ramp(tmp_path: Path) -> None:
    found = make_split(tmp_path, RAMP, outcome=trend(-0.12), split=BY_REQUEST, per_day=600).gathered()

    assert found.difference == pytest.approx(-0.12, abs=0.04)
    assert found.gain > 20


def test_lost_requests_of_one_arm_are_a_mismatch_and_nothing_is_decided(tmp_path: Path) -> None:
    def lose(rng: np.random.Generator, line: dict[str, Any]) -> dict[str, Any] | None:
        return None if line["arm"] == "treatment" and rng.random() < 0.2 else line

    found = make_split(tmp_path, outcome=rate(0.3, 0.2), split=BY_REQUEST, spoil=lose).gathered()

    verdict = decide(found)

    assert found.sample_ratio > 100
    assert (verdict.decision, verdict.reasons[0].criterion) == ("hold", "sample_ratio")


def test_an_answer_in_another_arm_than_drawn_is_seen(tmp_path: Path) -> None:
    def swap(_: np.random.Generator, line: dict[str, Any]) -> dict[str, Any]:
        other = {"control": "treatment", "treatment": "control"}[line["arm"]]
        return {**line, "arm": other} if line["request_id"] == "r7" else line

    found = make_split(tmp_path, spoil=swap).gathered()

    assert found.wrong_arms == 1
    assert decide(found).reasons[0].criterion == "wrong_arms"


def test_a_failing_treated_model_is_held_and_its_requests_stay_treated(tmp_path: Path) -> None:
    def fail(rng: np.random.Generator, line: dict[str, Any]) -> dict[str, Any]:
        if line["arm"] == "treatment" and rng.random() < 0.1:
            line |= {"role": "primary", "model_version": "1", "model_digest": "a" * 64}
        return line

    found = make_split(tmp_path, outcome=rate(0.35, -0.2), spoil=fail).gathered()

    verdict = decide(found)
    treated = found.guards[1]
    assert (treated.arm, treated.requests - treated.own) == ("treatment", treated.roles["primary"])
    assert found.failures == pytest.approx(0.1, abs=0.03)
    assert (verdict.decision, verdict.reasons[0].criterion) == ("hold", "failures")


def test_a_slow_treated_model_is_held(tmp_path: Path) -> None:
    def slow(_: np.random.Generator, line: dict[str, Any]) -> dict[str, Any]:
        line["stages_ms"]["total"] *= 2 if line["arm"] == "treatment" else 1
        return line

    verdict = decide(make_split(tmp_path, spoil=slow).gathered())

    assert (verdict.decision, verdict.reasons[0].criterion) == ("hold", "latency")


def test_answers_of_foreign_models_are_left_out_and_counted(tmp_path: Path) -> None:
    def foreign(_: np.random.Generator, line: dict[str, Any]) -> dict[str, Any]:
        return {**line, "model_digest": "c" * 64} if line["request_id"] == "r5" else line

    found = make_split(tmp_path, spoil=foreign).gathered()

    assert (found.notes.foreign, found.requests) == (1, 2999)


def test_a_key_plays_once_a_stage_and_not_again_once_it_is_treated() -> None:
    def line(at: int, unit: int, share: float, revision: int) -> dict[str, Any]:
        number = int((unit + 0.5) / 10 * 2**64)
        drawn = {"split_unit": f"{number:016x}", "arm": arm_of(number, share)}
        now = {"request_id": f"{unit}-{at}", "at": OPENED + timedelta(hours=at), "value": float(at)}
        return {**drawn, **now, "split_share": share, "split_revision": revision}

    frame = pd.DataFrame(
        [line(hour, unit, 0.2, 1) for hour in (0, 1, 50) for unit in range(10)]
        + [line(hour, unit, 0.6, 2) for hour in (60, 61) for unit in range(10)]
        + [line(100, unit, 0.4, 3) for unit in range(10)]
    )
    asked = Question("label", "higher", timedelta(0), OPENED + timedelta(days=30))

    units = draws(frame, asked, timedelta(hours=24))

    first, second = units[units["revision"] == 1], units[units["revision"] == 2]
    assert (len(first), int(first["treated"].sum()), set(first["chance"])) == (10, 2, {0.2})
    # What came after the window does not count.
    assert (set(first["value"]), set(first["requests"])) == ({0.5}, {2})
    # The two that were treated are known; the others are drawn with the chance that is left: (0.6 - 0.2) / (1 - 0.2).
    assert (len(second), int(second["treated"].sum())) == (8, 4)
    assert set(second["chance"].round(12)) == {0.5}
    # Lowered to 0.4, only those known to lie between 0.2 and 0.6 are in doubt.
    third = units[units["revision"] == 3]
    assert (len(third), int(third["treated"].sum()), set(third["chance"].round(12))) == (4, 2, {0.5})


def test_a_stage_that_ends_closes_its_keys_before_their_window_is_over(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.25, 2), (0.5, 2)), split=replace(SPLIT, window_s=5 * 86400.0), per_day=100)

    units = world.gathered()

    assert units.stages[0].counted == units.stages[0].drawn
    assert units.stages[1].counted == 0


def test_an_outcome_that_came_late_changes_nothing_that_was_decided(tmp_path: Path) -> None:
    world = make_split(tmp_path)
    before = world.gathered()
    path = next((tmp_path / "logs" / "labels").glob("*.jsonl"))
    late = {"request_id": "r5", "label": 1, "known_at": (OPENED + timedelta(days=9)).isoformat(), "at": None}
    path.write_text(path.read_text() + json.dumps(late) + "\n")

    after = world.gathered()

    assert (after.gain, after.difference) == (before.gain, before.difference)
    assert after.notes.values == {"labels that came after their outcome was due, left out": 1}


@pytest.mark.parametrize("days", [1, 3, 6, 9])
def test_looking_earlier_shows_the_same_units_as_far_as_they_were_due(days: int) -> None:
    rng = np.random.default_rng(days)
    passed = np.sort(rng.random(2000) * 10)
    share, revision = np.where(passed < 4, 0.05, 0.25), np.where(passed < 4, 1, 2)
    number = [draw("campaign", int(key)) for key in rng.integers(0, 300, 2000)]
    frame = pd.DataFrame(
        {"request_id": range(2000), "at": pd.Timestamp(OPENED) + pd.to_timedelta(passed, unit="D"),
         "split_unit": [f"{n:016x}" for n in number], "split_share": share, "split_revision": revision,
         "arm": [arm_of(n, s) for n, s in zip(number, share, strict=True)], "value": rng.random(2000)}
    )  # fmt: skip
    then, later = OPENED + timedelta(days=days), OPENED + timedelta(days=20)
    waits, window = timedelta(hours=12), timedelta(days=1)

    early = draws(frame[frame["at"] <= then], Question("label", "higher", waits, then), window)
    late = draws(frame, Question("label", "higher", waits, later), window)

    due = early[early["due"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(due, late.head(len(due)))


def test_an_outcome_that_was_not_declared_never_promotes(tmp_path: Path) -> None:
    world = make_split(tmp_path, outcome=rate(0.3, 0.2))

    verdict = decide(world.gathered(goal="higher"))

    assert verdict.decision == "hold"
    assert [reason.criterion for reason in verdict.deciding] == ["declared"]


def test_outcomes_of_a_file_count_by_the_same_rules(tmp_path: Path) -> None:
    world = make_split(tmp_path, split=replace(SPLIT, metric="revenue", goal="higher"))
    rng = np.random.default_rng(1)
    lines = [json.loads(x) for p in sorted((world.logs / "predictions").glob("*")) for x in p.read_text().splitlines()]
    gain = {"treatment": 3.0, "control": 0.0}
    frame = pd.DataFrame(
        {"request_id": [x["request_id"] for x in lines], "value": [rng.normal(20, 5) + gain[x["arm"]] for x in lines],
         "at": [x["at"] for x in lines]}
    )  # fmt: skip
    frame.loc[0, "value"] = np.nan
    odd = {"request_id": ["stranger", "r3"], "value": [1.0, 1e9], "at": [lines[0]["at"], "2013-12-01T00:00:00+00:00"]}
    pd.concat([frame, pd.DataFrame(odd)]).to_csv(tmp_path / "revenue.csv", index=False)

    found = world.gathered(file=tmp_path / "revenue.csv")

    assert found.difference == pytest.approx(3, abs=0.6)
    assert decide(found).decision == "promote"
    assert found.notes.values == {
        "lines of the file without a finite number, left out": 1,
        "lines of requests that are not in this split, left out": 1,
        "values that came after their outcome was due, left out": 1,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "ends in '.txt'; give one of .csv"),
        ("x.csv", "request_id,amount\na,1\n", "has no column value; it has request_id, amount"),
        ("x.csv", "request_id,value,at\na,1,soon\n", "a time in the column at cannot be read"),
        ("x.jsonl", "{", "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    world = make_split(tmp_path, ((0.5, 1),), per_day=20, split=replace(SPLIT, metric="revenue"))
    (tmp_path / name).write_text(content)

    with pytest.raises(DataError, match=re.escape(message)):
        world.gathered(file=tmp_path / name)


def test_a_metric_without_its_file_is_refused(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.5, 1),), per_day=20, split=replace(SPLIT, metric="revenue"))

    with pytest.raises(DataError, match="'revenue' is not in the logs; give FILE="):
        world.gathered()


def test_an_unknown_split_is_named_with_those_there_were(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.5, 1),), per_day=20)

    with pytest.raises(NotReady, match="there is no split 'other'; there was: 1-2"):
        world.gathered(name="other")


def test_a_split_nobody_has_asked_yet_says_so(tmp_path: Path) -> None:
    world = make_split(tmp_path, ((0.5, 1),), per_day=20)
    move_split(world.models, read_split(world.models).revision, replace(SPLIT, name="next"), at=world.now)

    with pytest.raises(NotReady, match=r"no answer in .* belongs to the split next"):
        world.gathered()


def test_an_ended_split_is_judged_as_of_its_end(tmp_path: Path) -> None:
    world = make_split(tmp_path)
    move_split(world.models, read_split(world.models).revision, None, at=world.now)

    found = world.gathered()

    assert found.ended == world.now
    assert found.days_open == pytest.approx(10)


def test_the_page_loads_nothing_and_every_link_has_its_section(tmp_path: Path) -> None:
    found = make_split(tmp_path, RAMP, outcome=trend(-0.1), per_day=200).gathered()
    verdict = decide(found)

    html = page(verdict, found)

    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    for reason in verdict.reasons:
        assert f'id="{reason.link.partition("#")[2]}"' in html
    assert all(f"{stage.share:.0%}" in summary(verdict, found) for stage in found.stages)


@pytest.mark.parametrize(("hours", "counted"), [(1, 0), (51, 13)])
def test_the_page_of_a_split_with_few_outcomes_says_so(tmp_path: Path, hours: int, counted: int) -> None:
    world = make_split(tmp_path, ((0.05, 3),), per_day=100)

    found = gather(world.logs, world.models, contract(), OPENED + timedelta(hours=hours), maturity=timedelta(days=1))
    verdict = decide(found)

    assert (verdict.decision, found.counted) == ("hold", counted)
    assert ("has an outcome yet, so nothing can be said" in page(verdict, found)) == (counted == 0)


def test_the_file_has_the_shape_of_a_campaigns_verdict(tmp_path: Path) -> None:
    found = make_split(tmp_path, ((0.5, 2),), per_day=50).gathered()
    verdict = decide(found)

    plain = json.loads(json.dumps(as_json(verdict, found), allow_nan=False))

    assert plain["kind"] == "split"
    assert plain["verdict"]["decision"] == "hold"
    assert {"criterion", "outcome", "value", "limit", "message", "link"} <= set(plain["verdict"]["reasons"][0])
    assert plain["evidence"]["split"]["name"] == "1-2"


def test_the_command_prints_the_verdict_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_split(tmp_path, ((0.5, 8),), outcome=rate(0.35, -0.2))
    monkeypatch.setattr("monitoring.split_job.settings", lambda: at(tmp_path, world.now + timedelta(days=3)))

    code = main([])

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, last["verdict"], last["split"]) == (0, "promote", "1-2")
    assert Path(last["report"]).read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "reports" / "split.json").read_text())["kind"] == "split"


@pytest.mark.parametrize(
    ("hours", "given", "all_of_them"), [(24, [], True), (900, [], False), (900, ["--maturity", "1d"], True)]
)
def test_maturity_is_a_setting_and_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hours: float, given: list[str],
    all_of_them: bool,
) -> None:  # fmt: skip
    world = make_split(tmp_path, ((0.5, 2),))
    where = at(tmp_path, world.now + timedelta(days=3)).model_copy(update={"label_maturity_h": hours})
    monkeypatch.setattr("monitoring.split_job.settings", lambda: where)

    main(given)

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["drawn"] > 0
    assert last["counted"] == (last["drawn"] if all_of_them else 0)


def test_the_command_without_a_split_says_how_to_open_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monitoring.split_job.settings", lambda: at(tmp_path, OPENED))

    code = main([])

    assert (code, capsys.readouterr().err) == (1, "split-verdict: there was no split; run `make split SHARE=1`\n")


def at(folder: Path, now: Any) -> Any:
    """Settings of a world, the clock standing at a moment."""
    from service.settings import Settings

    return Settings(state_dir=folder, models_dir=folder / "models", clock=now.isoformat())
