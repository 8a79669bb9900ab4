"""A model that came late, asked about logged vectors: offline evidence, which opens no door."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from monitoring import rehearse
from monitoring.evidence import Evidence
from monitoring.offline import Rehearsal
from monitoring.registered import Registered
from monitoring.rehearsal import Store
from monitoring.verdict import decide
from service.errors import DataError
from service.package import load_package
from service.settings import Settings
from tests.bundle import seat_model, settings_in
from tests.monitoring.logs import START, Logs, campaign, contract

ROWS, DAYS = 400, 14
TRAINED = START + timedelta(days=2)
BEFORE = ROWS * 2 // DAYS


@dataclass
class Stage:
    """A bundle whose primary answered a log, and a later model that was never asked."""

    settings: Settings
    logs: Logs
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, last line and what was said of errors."""
        self.logs.write(self.settings.log_dir)
        code = rehearse.main(["--version", "9", *arguments])
        said = self.capsys.readouterr()
        last = json.loads(said.out.splitlines()[-1]) if code == 0 else {}
        return code, last, said.err

    def records(self) -> list[dict[str, Any]]:
        """What was kept of the rehearsal."""
        (folder,) = (self.settings.state_dir / "rehearsals" / "9").iterdir()
        files = sorted((folder / "shadow").glob("*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stage:
    settings = settings_in(tmp_path)
    first = seat_model(settings, "primary", seed=1, record={"as_of": START.isoformat()})
    seat_model(settings, "shadow", seed=9, record={"as_of": TRAINED.isoformat()})
    logs = campaign(ROWS, days=DAYS)
    model = load_package(settings.models_dir / first.package, first.version, first.digest)
    scores = model.score([line["vector"] for line in logs.predictions])
    for line, score in zip(logs.predictions, scores, strict=True):
        line |= {"prediction": score, "model_version": first.version, "model_digest": first.digest}
    clock = (START + timedelta(days=DAYS + 2)).isoformat()
    monkeypatch.setattr(rehearse, "settings", lambda: settings.model_copy(update={"clock": clock}))
    return Stage(settings, logs, capsys)


def test_what_a_model_was_not_trained_on_is_scored_and_marked_as_offline(stage: Stage) -> None:
    code, last, _ = stage.run()

    assert (code, last["offline"], last["version"]) == (0, True, "9")
    assert (last["trained_on"], last["replayed"], last["scored"]) == (BEFORE + 1, ROWS - BEFORE - 1, ROWS - BEFORE - 1)
    records = stage.records()
    assert len(records) == last["replayed"]
    assert {record["offline"] for record in records} == {True}
    assert min(datetime.fromisoformat(record["at"]) for record in records) >= TRAINED
    seat = stage.settings.models_dir / "packages" / records[0]["model_digest"][:16]
    model = load_package(seat, "9", records[0]["model_digest"])
    by_id = {line["request_id"]: line["vector"] for line in stage.logs.predictions}
    again = model.score([by_id[record["request_id"]] for record in records])
    np.testing.assert_allclose([record["prediction"] for record in records], np.asarray(again))


def test_the_primarys_answers_come_out_as_logged(stage: Stage) -> None:
    _, last, _ = stage.run()

    assert last["reproduced"] == last["replayed"]


def test_the_live_logs_stay_as_they_were_and_a_second_run_has_nothing_to_do(stage: Stage) -> None:
    _, first, _ = stage.run()
    before = {path: path.read_bytes() for path in stage.settings.state_dir.rglob("*.jsonl")}
    _, second, _ = stage.run()

    assert {path: path.read_bytes() for path in stage.settings.state_dir.rglob("*.jsonl")} == before
    assert (first["already"], second["already"]) == (0, first["replayed"])
    assert second["scored"] == first["scored"]


@pytest.mark.parametrize(
    ("hours", "given", "used"), [(5.0, [], 5.0), (0.5, [], 0.5), (5.0, ["--maturity", "36h"], 36.0)]
)
def test_maturity_is_a_setting_and_an_option(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, hours: float, given: list[str], used: float
) -> None:
    clock = (START + timedelta(days=DAYS + 2)).isoformat()
    using = stage.settings.model_copy(update={"clock": clock, "label_maturity_h": hours})
    monkeypatch.setattr(rehearse, "settings", lambda: using)

    _, last, _ = stage.run(*given)

    found = json.loads(Path(last["report"]).with_suffix(".json").read_text())
    assert found["evidence"]["label_coverage"]["maturity_hours"] == used


def test_a_run_that_was_killed_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.rehearsal.BATCH", 50)
    monkeypatch.setattr("monitoring.rehearsal.SEGMENT", 100)
    write, written = Store.write, list[int]()

    def dying(self: Store, records: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(records))
        write(self, records)

    with monkeypatch.context() as killed:
        killed.setattr(Store, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            stage.run()
    _, last, _ = stage.run()

    assert (last["already"], last["scored"]) == (200, ROWS - BEFORE - 1)
    assert len({record["request_id"] for record in stage.records()}) == len(stage.records())


def test_rows_that_lack_a_value_the_model_takes_are_left_out_and_counted(stage: Stage) -> None:
    name = contract().features[0]
    for line in stage.logs.predictions[-10:]:
        line["vector"][name] = None
        line["redacted"] = [name]

    _, last, _ = stage.run()

    assert (last["redacted"], last["replayed"]) == (10, ROWS - BEFORE - 1 - 10)


def test_a_stretch_of_the_log_can_be_named(stage: Stage) -> None:
    start, end = (START + timedelta(days=days) for days in (7, 10))

    _, last, _ = stage.run("--start", start.isoformat(), "--end", end.isoformat())

    inside = [line for line in stage.logs.predictions if start <= line["at"] < end]
    assert last["replayed"] == len(inside)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", "77"), "version '77' is not registered (with a role are or were: 1, 9)"),
        (("--version", ""), "no version was named"),
        (("--start", "yesterday"), "--start: 'yesterday' is no instant"),
        (("--end", "2013-10-02"), "were made before 2013-10-03 12:00"),
        (("--start", "2014-01-01"), "holds no prediction in that stretch of time"),
        (("--maturity", "soon"), "--maturity: 'soon' is not a duration"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_nothing_behind(
    stage: Stage, arguments: tuple[str, ...], said: str
) -> None:
    code, _, errors = stage.run(*arguments)

    assert code == 1
    assert said in errors
    assert not (stage.settings.state_dir / "rehearsals").exists()
    assert not (stage.settings.state_dir / "reports").exists()


def test_an_altered_package_is_not_asked(stage: Stage) -> None:
    folder = next(
        path for path in (stage.settings.models_dir / "packages").iterdir()
        if '"seed": 9' in (path / "record.json").read_text()
    )  # fmt: skip
    (folder / "signature.json").write_text("{}")

    code, _, errors = stage.run()

    assert code == 1
    assert "signature.json" in errors


def test_a_model_that_takes_what_the_log_does_not_hold_is_named(stage: Stage) -> None:
    seat = SimpleNamespace(version="9")
    model = SimpleNamespace(signature=SimpleNamespace(features=("nowhere", contract().features[0])))
    found = cast("Registered", SimpleNamespace(seat=seat, model=model, as_of=START))

    with pytest.raises(DataError, match="version 9 takes nowhere, which the log of feature service primary"):
        rehearse.choose(stage.settings.log_dir, contract(), found)


def offline(evidence: Evidence) -> Evidence:
    """The same evidence, had it come from a rehearsal."""
    told = Rehearsal(
        version="2", digest="b" * 64, trained_as_of=START, start=None, end=None, logged=9, trained_on=0, redacted=0,
        replayed=9, marks={}, already=0, again=0, reproduced=0,
    )  # fmt: skip
    return replace(evidence, rehearsal=told)


def test_what_would_be_promoted_live_is_held_offline(gather: Callable[[Logs], Evidence]) -> None:
    evidence = gather(campaign(4000))

    live, late = decide(evidence), decide(offline(evidence))

    assert (live.decision, live.offline, live.would_be) == ("promote", False, None)
    assert (late.decision, late.offline, late.would_be) == ("hold", True, "promote")
    assert late.reasons[0].criterion == "offline"


def test_what_would_be_rejected_live_is_rejected_offline(gather: Callable[[Logs], Evidence]) -> None:
    late = decide(offline(gather(campaign(4000, primary_noise=0.4, shadow_noise=1.4))))

    assert (late.decision, late.would_be) == ("reject", "reject")
