"""What the log does not hold on purpose is left out and said, never taken for a null, a skew or a match."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from pydantic import SecretStr

from monitoring import export, skew_job, validate_job
from monitoring.redacted import needed, removed
from service.redaction import redaction_of
from service.roles import load_role, read_roles
from tests.bundle import seat_model, settings_in
from tests.monitoring.logs import START, Logs, campaign
from tests.monitoring.world import CONTRACT, REQUESTS, Line, World, make_world

STORED_BY_PLANE = {"plane_last_arr_delay", "plane_idle_h"}
OF_THE_SCHEDULE = {
    "dep_hour", "dep_minute", "dep_weekday", "trip_distance", "hour_load", "plane_idle_h"
} & set(CONTRACT.features)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def without(lines: list[Line], names: str, key: str = "", every: int = 1) -> list[Line]:
    """The lines as the log would hold them; only every so manieth is redacted."""
    redaction = redaction_of(CONTRACT, names, SecretStr(key))
    assert redaction is not None
    return [redaction.applied(line) if i % every == 0 else line for i, line in enumerate(copy.deepcopy(lines))]


@pytest.mark.parametrize("key", ["", "k" * 32])
def test_the_log_says_in_which_records_what_is_missing(world: World, key: str) -> None:
    world.audited(without(world.logs.predictions, "tailnum,temp", key, every=4))

    frame = export.predictions(world.settings.log_dir, CONTRACT).frame

    found = removed(frame)
    assert {name: int(rows.sum()) for name, rows in found.items()} == dict.fromkeys(("tailnum", "temp"), REQUESTS // 4)
    assert frame.loc[found["temp"], "vector.temp"].isna().all()
    assert frame.loc[found["tailnum"], "request.tailnum"].dropna().str.startswith("~").all()


def test_a_log_of_records_that_never_heard_of_it_holds_everything(world: World) -> None:
    world.audited(world.logs.predictions)

    assert removed(export.predictions(world.settings.log_dir, CONTRACT).frame) == {}
    assert removed(pd.DataFrame({"at": [START]})) == {}


@pytest.mark.parametrize("key", ["", "k" * 32])
@pytest.mark.parametrize(
    ("names", "hidden"),
    [
        ("tailnum", STORED_BY_PLANE),
        ("temp", {"temp"}),
        ("carrier", {"carrier", "carrier_late_rate_6h", "carrier_outcomes_6h", "carrier_late_rate_7d"}),
        ("scheduled_departure", OF_THE_SCHEDULE),
    ],
)
def test_the_audit_leaves_out_what_cannot_be_recomputed_and_passes(
    world: World, names: str, hidden: set[str], key: str
) -> None:
    found = world.audited(without(world.logs.predictions, names, key))

    parity = {f.feature: (f.compared, f.differing, f.redacted) for f in found.parity.features}
    assert {name for name, counts in parity.items() if counts == (0, 0, REQUESTS)} == hidden
    assert {counts for name, counts in parity.items() if name not in hidden} == {(REQUESTS, 0, 0)}
    assert (found.parity.exact_share, found.parity.redacted) == (1.0, REQUESTS)
    assert set(found.parity.behind.values()) | set(found.parity.ahead.values()) == {0}
    assert skew_job.clean(found)


def test_skew_in_what_is_left_is_still_found(world: World) -> None:
    lines = copy.deepcopy(world.logs.predictions)
    for line in lines:
        line["vector"]["humid"] += 1.0

    found = world.audited(without(lines, "tailnum,temp"))

    assert [f.feature for f in found.parity.worst] == ["humid"]
    assert not skew_job.clean(found)


def test_records_from_before_the_setting_are_compared(world: World) -> None:
    found = world.audited(without(world.logs.predictions, "temp", every=4))

    temp = next(f for f in found.parity.features if f.feature == "temp")
    assert (temp.compared, temp.differing, temp.redacted) == (REQUESTS * 3 // 4, 0, REQUESTS // 4)


def test_a_redacted_feature_is_neither_missing_nor_shifted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pd.DataFrame([line["vector"] for line in world.logs.predictions])
    monkeypatch.setattr("monitoring.skew._sample", lambda *_: ("digest", reference))

    whole = world.audited(without(world.logs.predictions, "temp,carrier", "k" * 32))
    part = world.audited(without(world.logs.predictions, "temp,carrier", every=2))

    assert [s.feature for s in whole.shifts if s.alarm] == []
    assert {"temp", "carrier"} & {s.feature for s in whole.shifts} == set()
    assert [s.feature for s in part.shifts if s.alarm] == []
    assert {"temp", "carrier"} <= {s.feature for s in part.shifts}


def test_predictions_whose_vector_is_not_whole_are_not_scored_again(world: World) -> None:
    seat_model(world.settings, "primary", seed=1)
    seat = read_roles(world.settings.models_dir).seats["primary"]
    model = load_role(world.settings.models_dir, "primary")
    lines = copy.deepcopy(world.logs.predictions)
    for line in lines:
        line["model_digest"], line["prediction"] = seat.digest, model.score([line["vector"]])[0]

    scores = world.audited(without(lines, model.signature.features[0], every=4)).scores

    assert (scores.compared, scores.equal, scores.redacted) == (REQUESTS * 3 // 4, REQUESTS * 3 // 4, REQUESTS // 4)


def test_the_page_and_the_last_line_name_what_was_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(skew_job, "settings", lambda: world.settings)
    world.audited(without(world.logs.predictions, "temp"))

    code = skew_job.main([])

    said = capsys.readouterr().out
    page = (world.settings.state_dir / "reports" / "skew.html").read_text()
    assert (code, json.loads(said.splitlines()[-1])["redacted_features"]) == (0, ["temp"])
    assert "what they are made from (redacted): temp." in said
    assert "does not hold" in page


def test_a_log_without_any_feature_is_no_audit(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(skew_job, "settings", lambda: world.settings)
    world.audited(without(world.logs.predictions, ",".join(CONTRACT.features)))

    assert skew_job.main([]) == 2
    assert "none of 400 vectors can be compared: the log does not hold their values" in capsys.readouterr().err


def test_every_feature_knows_what_it_is_made_from() -> None:
    needs = needed(CONTRACT)

    assert set(needs) == set(CONTRACT.features)
    assert needs["plane_last_arr_delay"] == {"plane_last_arr_delay", "tailnum"}
    assert {"plane_last_arrival", "tailnum"} <= needs["plane_idle_h"]
    assert needs["carrier"] == {"carrier"}


def test_validation_expects_nothing_of_what_the_log_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = campaign(300, days=3)
    settings = settings_in(tmp_path, clock=(START + timedelta(days=3)).isoformat())
    monkeypatch.setattr(validate_job, "settings", lambda: settings)

    some = validate_job.main(["--logs", str(Logs(without(logs.predictions, "precip,carrier")).write(tmp_path / "a"))])
    said = capsys.readouterr()
    every = ",".join(CONTRACT.features)
    none = validate_job.main(["--logs", str(Logs(without(logs.predictions, every)).write(tmp_path / "b"))])

    result = json.loads(said.out.splitlines()[-1])
    assert (some, result["failed"], result["redacted"]) == (0, 0, ["carrier", "precip"])
    assert "not looked at, because the log does not hold their values: carrier, precip" in said.err
    assert (none, "every feature is redacted" in capsys.readouterr().err) == (2, True)
