"""Campaigns on record: named alike at every look, bound to what was declared, and closed for a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring import compare_job
from monitoring.campaigns import KEPT_LOOKS, gone, judge, read_records
from monitoring.compare import Options, compare
from monitoring.compare_job import open_logs
from monitoring.criteria import Criteria, default_criteria
from monitoring.evidence import Evidence, Version
from monitoring.pairing import FIRST
from monitoring.verdict import Verdict
from service.errors import DataError
from service.settings import Settings
from tests.monitoring.logs import PRIMARY, SHADOW, START, Logs, campaign, contract, drop
from tests.monitoring.test_slots import again, offered, second

DECLARED = default_criteria()
OTHER = default_criteria(min_rows=10)


def evidence_of(folder: Path, logs: Logs, days: float = 15) -> Evidence:
    """The evidence so many days after the start."""
    shutil.rmtree(folder / "logs", ignore_errors=True)
    paired = open_logs(logs.write(folder / "logs"), contract()).of(FIRST)
    return compare(paired, contract(), Options(now=START + timedelta(days=days)))


def look(
    folder: Path, evidence: Evidence, criteria: Criteria = DECLARED, hours: float = 24, most: float = 28
) -> tuple[Evidence, Verdict]:
    """Look at a campaign whose record is below a folder."""
    return judge(folder / "campaigns", evidence, criteria, hours, most, "compare.html")


def first_reason(verdict: Verdict) -> str:
    """What is named first."""
    return verdict.reasons[0].criterion


def test_the_record_says_what_was_compared_under_which_criteria(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(300))

    evidence, verdict = look(tmp_path, found)

    (record,) = read_records(tmp_path / "campaigns")
    assert (record.name, record.slot, record.opened) == (evidence.campaign, "shadow", START)
    assert (record.primary, record.shadow) == (Version(*PRIMARY), Version(*SHADOW))
    assert (record.contract, record.service_versions) == (contract().digest, ("0.1.0",))
    assert (record.criteria, record.maturity_h, record.status) == (DECLARED.digest, 24, "open")
    assert [(each.at, each.decision) for each in record.looks] == [(evidence.as_of, verdict.decision)]
    assert verdict.campaign == record.name


def test_looking_again_is_the_same_campaign_and_each_look_is_kept(tmp_path: Path) -> None:
    logs = campaign(300)
    names = {look(tmp_path, evidence_of(tmp_path, logs, days))[0].campaign for days in (15, 16, 17)}

    (record,) = read_records(tmp_path / "campaigns")

    assert names == {record.name}
    assert [each.at - START for each in record.looks] == [timedelta(days=d) for d in (15, 16, 17)]


def test_only_the_newest_looks_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(40))
    look(tmp_path, found)
    (path,) = (tmp_path / "campaigns").glob("*.json")
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "looks": plain["looks"] * KEPT_LOOKS, "looked": KEPT_LOOKS}))

    look(tmp_path, replace(found, as_of=found.as_of + timedelta(hours=1)))

    (record,) = read_records(tmp_path / "campaigns")
    assert (len(record.looks), record.looked) == (KEPT_LOOKS, KEPT_LOOKS + 1)
    assert record.looks[-1].at == found.as_of + timedelta(hours=1)


def test_a_campaign_keeps_its_opening_when_its_first_rows_are_deleted(tmp_path: Path) -> None:
    logs = campaign(300)
    before, _ = look(tmp_path, evidence_of(tmp_path, logs))
    for lines in (logs.predictions, logs.shadow, logs.labels):
        del lines[:100]

    after, verdict = look(tmp_path, evidence_of(tmp_path, logs, 16))

    assert (after.campaign, after.opened, after.days) == (before.campaign, START, 16)
    assert (verdict.campaign, verdict.opened) == (before.campaign, START)


def better() -> Logs:
    """A shadow that deserves the primary's place."""
    return campaign(2500)


@pytest.mark.parametrize(("criteria", "hours"), [(OTHER, 24.0), (DECLARED, 1.0)], ids=["criteria", "maturity"])
def test_criteria_other_than_the_declared_ones_hold(tmp_path: Path, criteria: Criteria, hours: float) -> None:
    found = evidence_of(tmp_path, better())
    look(tmp_path, replace(found, as_of=START + timedelta(days=1), performance=None))

    verdict = look(tmp_path, found, criteria, hours)[1]

    assert (verdict.decision, first_reason(verdict)) == ("hold", "declared")
    assert "the criteria are not those declared when the campaign opened" in verdict.reasons[0].message
    assert look(tmp_path, found)[1].decision == "promote"


def test_undeclared_criteria_do_not_reject_either(tmp_path: Path) -> None:
    logs = campaign(600)
    for line in logs.shadow[:300]:
        drop(line, "invalid_output")
    found = evidence_of(tmp_path, logs)

    assert look(tmp_path, found)[1].decision == "reject"

    assert look(tmp_path, found, OTHER)[1].decision == "hold"


def test_a_verdict_closes_it_and_later_looks_are_still_made(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, better())

    first = look(tmp_path, found)[1]
    later = look(tmp_path, replace(found, as_of=START + timedelta(days=40)))[1]

    (record,) = read_records(tmp_path / "campaigns")
    assert (first.decision, later.decision) == ("promote", "promote")
    assert (record.status, record.why, record.closed) == ("closed", "promoted", found.as_of)
    assert record.looked == 2


def test_without_a_verdict_it_expires_by_the_clock_and_the_verdict_says_so(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, better(), days=29)

    verdict = look(tmp_path, found)[1]

    (record,) = read_records(tmp_path / "campaigns")
    assert (verdict.decision, first_reason(verdict)) == ("hold", "age")
    assert "29.0 (at most 28.0" in verdict.reasons[0].message
    assert "the campaign has expired without a verdict" in verdict.reasons[0].message
    assert (record.status, record.why) == ("closed", "expired")


def test_a_raised_limit_lets_an_expired_one_go_on(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(300), days=29)
    look(tmp_path, found)

    verdict = look(tmp_path, found, most=60)[1]

    (record,) = read_records(tmp_path / "campaigns")
    assert "age" not in {reason.criterion for reason in verdict.deciding}
    assert (record.status, record.closed, record.why) == ("open", None, None)


def test_another_model_in_the_slot_closes_it_and_opens_the_next(tmp_path: Path) -> None:
    logs = campaign(300)
    old = look(tmp_path, evidence_of(tmp_path, logs))[0]
    for line in logs.shadow[200:]:
        line.update(model_version="3", model_digest="c" * 64)

    new = look(tmp_path, evidence_of(tmp_path, logs, 16))[0]

    records = {record.name: record for record in read_records(tmp_path / "campaigns")}
    assert set(records) == {old.campaign, new.campaign}
    assert (records[old.campaign].why, records[old.campaign].closed) == ("changed", START + timedelta(days=16))
    assert records[new.campaign].status == "open"


def test_a_pair_that_returns_opens_a_campaign_of_its_own(tmp_path: Path) -> None:
    logs = campaign(300)
    early = campaign(300)
    for lines in (early.predictions, early.shadow, early.labels):
        del lines[100:]
    old = look(tmp_path, evidence_of(tmp_path, early, 5))[0]
    for line in logs.shadow[100:200]:
        line.update(model_version="3", model_digest="c" * 64)

    # Nobody looked while the other one played.
    new = look(tmp_path, evidence_of(tmp_path, logs))[0]

    assert new.campaign != old.campaign
    assert new.opened > old.opened
    assert {record.why for record in read_records(tmp_path / "campaigns")} == {"changed", None}


def test_campaigns_of_two_slots_do_not_close_each_other(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(300))

    look(tmp_path, found)
    look(tmp_path, replace(found, slot="shadow_2"))

    assert {(r.slot, r.status) for r in read_records(tmp_path / "campaigns")} == {
        ("shadow", "open"),
        ("shadow_2", "open"),
    }


def test_a_damaged_record_is_named_and_nothing_is_decided(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(40))
    look(tmp_path, found)
    (path,) = (tmp_path / "campaigns").glob("*.json")
    path.write_text(path.read_text()[:50])

    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        look(tmp_path, found)


def test_a_model_deleted_meanwhile_is_said(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, campaign(40))
    (tmp_path / "models" / "packages" / PRIMARY[1][:16]).mkdir(parents=True)

    (told,) = gone(tmp_path / "models", found)

    assert told.startswith("the package of the shadow's version 2")
    assert "train it again" in told
    assert gone(tmp_path / "elsewhere", found) == []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command on logs and return exit code, last line and all it printed."""

    def command(logs: Logs, *arguments: str, **more: Any) -> tuple[int, Any, str]:
        chosen = {"clock": (START + timedelta(days=15)).isoformat(), **more}
        settings = Settings(state_dir=tmp_path / "state", models_dir=tmp_path / "models", **chosen)
        monkeypatch.setattr(compare_job, "settings", lambda: settings)
        logs.write(settings.log_dir)
        code = compare_job.main(["--no-evidently", *arguments])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]) if code == 0 else None, said.out + said.err

    return command


def test_the_command_compares_every_slot_and_writes_each_its_page(run: Callable[..., Any], tmp_path: Path) -> None:
    logs = offered(better(), "shadow", "shadow_2")
    for line in second(logs)[:1500]:
        drop(line, "invalid_output")
    again(logs, 100)

    code, last, out = run(logs)

    reports = tmp_path / "state" / "reports"
    assert code == 0
    assert (last["verdict"], last["sampled"], last["scored"]) == ("promote", 2500, 2500)
    assert {slot: (each["verdict"], each["shadow"]) for slot, each in last["campaigns"].items()} == {
        "shadow": ("promote", "2"),
        "shadow_2": ("reject", "3"),
    }
    assert last["campaigns"]["shadow_2"]["report"] == str(reports / "compare-shadow_2.html")
    found = json.loads((reports / "compare-shadow_2.json").read_text())
    assert (found["verdict"]["decision"], found["verdict"]["shadow"]["version"]) == ("reject", "3")
    assert found["verdict"]["reasons"][0]["link"].startswith("compare-shadow_2.html#")
    assert 'href="compare-shadow_2.html"' in (reports / "compare.html").read_text()
    assert "REJECT  shadow_2 version 3" in out
    assert {r.slot: r.why for r in read_records(tmp_path / "state" / "campaigns")} == {
        "shadow": "promoted",
        "shadow_2": "rejected",
    }


def test_a_slot_that_cannot_be_compared_is_said_and_the_others_are(run: Callable[..., Any]) -> None:
    logs = offered(campaign(60), "shadow", "shadow_2")

    code, last, out = run(logs)

    assert (code, list(last["campaigns"])) == (0, ["shadow"])
    assert "note: shadow_2: none of 60 predictions has a shadow record" in out


def test_settings_are_the_criteria_and_changing_them_on_the_way_holds(run: Callable[..., Any]) -> None:
    logs = campaign(300)

    few = run(logs, campaign_min_rows=100, campaign_min_labels=0.5, campaign_min_days=3)[1]
    changed = run(logs)[1]

    assert not any("Requests with both scores" in reason for reason in few["reasons"])
    assert "declared when the campaign opened" in changed["reasons"][0]


@pytest.mark.parametrize("hours", [72.0, 0.5])
def test_maturity_is_a_setting(run: Callable[..., Any], tmp_path: Path, hours: float) -> None:
    run(campaign(300), label_maturity_h=hours)

    found = json.loads((tmp_path / "state" / "reports" / "compare.json").read_text())

    assert found["evidence"]["label_coverage"]["maturity_hours"] == hours
