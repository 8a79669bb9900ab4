"""When to train again: each reason, what holds it back, and the record that is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring import retraining
from monitoring.drift_store import ColumnResult, Window, write_windows
from monitoring.retraining_facts import gather, read_decisions
from monitoring.retraining_rules import Alarm, Decision, Facts, Limits, decide
from service.errors import NotReady
from service.roles import read_roles
from service.settings import Settings
from tests.bundle import seat_model, settings_in

NOW = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
QUIET = Facts(
    NOW, "d", NOW - 10 * DAY, NOW - 10 * DAY, NOW, concept=(1.0, 500.0), labelled=1.0
)  # fmt: skip
LASTING = Alarm("drift:temp", NOW - 4 * DAY, 4, "PSI 0.4")


def outcomes(decision: Decision) -> dict[str, str]:
    return {reason.name: reason.outcome for reason in decision.reasons}


def test_nothing_is_due_while_all_is_quiet() -> None:
    decision = decide(QUIET, Limits())

    assert decision.decision == "wait"
    assert set(outcomes(decision).values()) == {"fine"}


@pytest.mark.parametrize(
    ("facts", "limits", "name"),
    [
        (replace(QUIET, alarms=(LASTING,)), Limits(), "drift"),
        (replace(QUIET, concept=(600.0, 500.0)), Limits(), "performance"),
        (replace(QUIET, trained=NOW - 30 * DAY), Limits(), "age"),
        (QUIET, Limits(every=10.0), "schedule"),
    ],
)
def test_each_reason_alone_asks_for_a_training(facts: Facts, limits: Limits, name: str) -> None:
    decision = decide(facts, limits)

    assert decision.decision == "retrain"
    assert [n for n, outcome in outcomes(decision).items() if outcome == "due"] == [name]


@pytest.mark.parametrize("alarm", [replace(LASTING, windows=2), replace(LASTING, name="nulls:temp")])
def test_a_short_alarm_and_a_broken_feed_ask_for_none(alarm: Alarm) -> None:
    assert decide(replace(QUIET, alarms=(alarm,)), Limits()).decision == "wait"


@pytest.mark.parametrize("past", [replace(QUIET, newest=NOW - 6 * DAY), replace(QUIET, decided=NOW - 6 * DAY)])
def test_a_training_or_a_refusal_within_the_cool_down_holds_the_next_one_back(past: Facts) -> None:
    decision = decide(replace(past, trained=NOW - 40 * DAY), Limits())

    assert decision.decision == "wait"
    assert outcomes(decision)["cooldown"] == "blocked"


@pytest.mark.parametrize("labelled", [None, 0.5])
def test_a_drift_whose_labels_have_not_come_is_not_trained_into(labelled: float | None) -> None:
    decision = decide(replace(QUIET, alarms=(LASTING,), labelled=labelled), Limits())

    assert decision.decision == "wait"
    assert outcomes(decision)["labels"] == "blocked"


def test_findings_too_old_are_no_data() -> None:
    decision = decide(replace(QUIET, until=NOW - 4 * DAY, alarms=(LASTING,)), Limits())

    assert decision.decision == "wait"
    assert outcomes(decision)["drift"] == "no data"


def test_without_any_measurement_there_is_no_data() -> None:
    assert decide(Facts(NOW, "d"), Limits()).decision == "no data"
    assert decide(Facts(NOW), Limits()).decision == "no data"


def test_a_training_after_the_clock_is_no_age() -> None:
    assert outcomes(decide(replace(QUIET, trained=NOW + DAY), Limits()))["age"] == "no data"


def test_the_same_evidence_is_one_decision_and_another_window_is_another() -> None:
    later = replace(QUIET, now=NOW + timedelta(hours=1))

    assert decide(QUIET, Limits()).key == decide(later, Limits()).key
    assert decide(QUIET, Limits()).key != decide(replace(QUIET, until=NOW - DAY), Limits()).key


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path, clock=NOW.isoformat())
    seat_model(settings, "primary", seed=1)
    return settings


def test_a_check_keeps_each_decision_once_and_survives_a_torn_line(own: Settings) -> None:
    record = retraining.folder(own.state_dir) / retraining.FILE
    first, fresh = retraining.check(own)
    with record.open("a") as file:
        file.write('{"torn')

    second, again = retraining.check(own)

    assert (fresh, again) == (True, False)
    assert first.key == second.key
    assert [line["key"] for line in read_decisions(record)[0]] == [first.key]
    assert read_decisions(record)[1] == 1
    assert "understudy_retraining_due 0.0" in (own.state_dir / "monitoring/retraining.prom").read_text()


def test_a_damaged_package_is_an_error_and_not_a_decision(own: Settings) -> None:
    next(own.models_dir.glob("packages/*/record.json")).write_text("{}")

    with pytest.raises(NotReady, match="cannot be read"):
        gather(own, NOW)


def test_the_command_prints_its_decision_last(
    own: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retraining, "settings", lambda: own)

    code = retraining.main([])

    assert code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recorded_now"] is True


def test_drift_of_the_primary_and_its_labels_are_read_from_the_files(own: Settings) -> None:
    digest = read_roles(own.models_dir).seats["primary"].digest
    column = ColumnResult("temp", 1, 9, 0.4, 0.4, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ("drift",))
    days = [NOW - n * DAY for n in range(4, 0, -1)]
    windows = [Window(day, day + DAY, digest, "1", 9, 9, "judged", columns=(column,)) for day in days]
    write_windows(
        own.state_dir / "monitoring", [*windows, Window(NOW - 9 * DAY, NOW - 8 * DAY, "x", "0", 9, 9, "judged")]
    )
    lines = [{"request_id": str(n), "at": day.isoformat()} for n, day in enumerate(days)]
    known = [{"request_id": "0", "label": 1.0}, {"request_id": "0", "label": 0.0}, {"request_id": "z", "label": 1.0}]
    for name, records in (("predictions", lines), ("labels", known)):
        (own.log_dir / name).mkdir(parents=True)
        (own.log_dir / name / "w-1.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))

    facts = gather(own, NOW)

    assert [(a.name, a.first, a.windows) for a in facts.alarms] == [("drift:temp", NOW - 4 * DAY, 4)]
    assert (facts.until, facts.labelled) == (NOW, 0.25)
    assert outcomes(decide(facts, Limits()))["labels"] == "blocked"
