"""The audit: silent about good serving, and by name about every way in which it goes wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring import skew_job
from monitoring.distributions import shifts
from monitoring.parity import FeatureParity
from monitoring.parity_causes import OFFSETS, same
from monitoring.skew import Audit, audit
from service.errors import NotReady
from service.roles import read_roles
from tests.bundle import seat_model, settings_in
from tests.monitoring.world import CONTRACT, EVERY, KEYS, REQUESTS, Line, World, changed, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def the_one(found: Audit, feature: str) -> FeatureParity:
    """The feature that must be the only one to differ."""
    assert [f.feature for f in found.parity.worst] == [feature]
    assert found.parity.worst[0].cause is not None
    return found.parity.worst[0]


def kinds(found: Audit) -> dict[str, str]:
    return {f.feature: f.cause.kind for f in found.parity.worst if f.cause}


def test_an_untampered_log_is_exact_to_the_last_bit(world: World) -> None:
    found = world.audited(world.logs.predictions)

    assert (found.parity.vectors, found.parity.exact, found.parity.exact_share) == (REQUESTS, REQUESTS, 1.0)
    assert found.parity.worst == ()
    assert set(found.parity.behind.values()) == {0}


def test_the_last_bit_counts(world: World) -> None:
    def nudge(line: Line) -> None:
        if line["request_id"] == "r7":
            line["vector"]["temp"] = float(np.nextafter(line["vector"]["temp"], 1e9))

    found = world.audited(changed(world, nudge))

    assert found.parity.exact == REQUESTS - 1
    assert the_one(found, "temp").examples[0].request_id == "r7"


def test_a_scrambled_category_encoding_is_named(world: World) -> None:
    order = dict(zip(KEYS["carrier"], ("UA", "AA", "B6", "DL"), strict=True))

    found = world.audited(changed(world, lambda line: line["vector"].update(carrier=order[line["vector"]["carrier"]])))

    cause = the_one(found, "carrier").cause
    assert cause is not None
    assert cause.kind == "relabelled"
    assert "AA as UA, B6 as AA, DL as B6, UA as DL" in cause.text


def test_two_exchanged_labels_are_enough(world: World) -> None:
    swap = {"EWR": "JFK", "JFK": "EWR"}

    found = world.audited(
        changed(world, lambda line: line["vector"].update(origin=swap.get(line["vector"]["origin"], "LGA")))
    )

    assert kinds(found) == {"origin": "relabelled"}


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_computed_hour_of_another_time_zone_is_named(world: World, hours: int) -> None:
    found = world.audited(
        changed(world, lambda line: line["vector"].update(dep_hour=(line["vector"]["dep_hour"] + hours) % 24))
    )

    cause = the_one(found, "dep_hour").cause
    assert cause is not None
    assert cause.kind == "shifted"
    assert f"off by {hours:+d}, counted around 0 to 23" in cause.text


@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("hours", [-1, 1])
def test_features_looked_up_an_hour_off_are_named(world: World, hours: int, with_times: bool) -> None:
    lines = copy.deepcopy(world.logs.predictions)
    request_only = {f for step in CONTRACT.on_demand for f in step.features} | {"origin", "carrier"}
    for line, vector in zip(lines, world.joined(lines, lambda line: line["at"] + timedelta(hours=hours)), strict=True):
        line["vector"].update({k: v for k, v in vector.items() if k not in request_only})
        if not with_times:
            line["event_times"] = {}

    found = world.audited(lines)

    named = {f.feature: f.cause.text for f in found.parity.worst if f.cause and f.cause.kind == "instant"}
    stored = {name for view in CONTRACT.views for name in view.features} & set(CONTRACT.features)
    assert set(named) == {f.feature for f in found.parity.worst} <= stored
    assert {"temp", "origin_dep_delay_3h", "carrier_late_rate_7d"} <= set(named)
    assert all(f"1 h {'later' if hours > 0 else 'earlier'}" in text for text in named.values())


def test_nulls_filled_with_zero_are_named(world: World) -> None:
    found = world.audited(
        changed(world, lambda line: line["vector"].update(wind_gust=line["vector"]["wind_gust"] or 0.0))
    )

    feature = the_one(found, "wind_gust")
    assert feature.cause is not None
    assert (feature.cause.kind, feature.cause.text) == ("filled", "null was served as 0.0")
    assert 0.1 < feature.share < 0.5


@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("view", ["origin_weather", "origin_traffic", "plane_record"])
def test_a_join_one_row_late_is_named(world: World, view: str, with_times: bool) -> None:
    lines = copy.deepcopy(world.logs.predictions)
    known = [line for line in lines if line["event_times"][view] is not None]
    before = world.joined(known, lambda line: line["event_times"][view] - timedelta(microseconds=1))
    spec = next(v for v in CONTRACT.views if v.name == view)
    features = [name for name in spec.features if name in CONTRACT.features]
    for line, vector in zip(known, before, strict=True):
        line["vector"].update({name: vector[name] for name in features})
        line["event_times"][view] = line["event_times"][view] - timedelta(minutes=EVERY[view]) if with_times else None

    found = world.audited(lines)

    assert kinds(found) == dict.fromkeys(features, "late")
    (text,) = {f.cause.text for f in found.parity.worst if f.cause}
    assert text.startswith("the row before the newest known one was served")
    assert found.parity.behind[view] == (len(known) if with_times else 0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda v: {"temp": None}, "lost"),
        (lambda v: {"temp": v["temp"] + 3.0}, "shifted"),
        (lambda v: {"temp": v["temp"] * 1.609}, "scaled"),
        (lambda v: {"temp": float(np.float32(v["temp"]))}, "rounded"),
        (lambda v: {"temp": v["temp"] ** 2 + v["humid"]}, "unexplained"),
        (lambda v: {"wind_gust": v["wind_gust"] or v["temp"]}, "invented"),
    ],
)
def test_every_other_kind_has_its_name(world: World, change: Callable[[Line], Line], kind: str) -> None:
    found = world.audited(changed(world, lambda line: line["vector"].update(change(line["vector"]))))

    assert set(kinds(found).values()) == {kind}


def test_a_fault_of_a_tenth_of_the_traffic_is_named_as_well(world: World) -> None:
    def shift(line: Line) -> None:
        if int(line["request_id"][1:]) % 10 == 0:
            line["vector"]["dep_hour"] = (line["vector"]["dep_hour"] + 1) % 24

    found = world.audited(changed(world, shift))

    assert kinds(found) == {"dep_hour": "shifted"}
    assert found.parity.exact == REQUESTS * 9 // 10


def test_what_was_never_read_is_counted_and_not_held_against_the_features(world: World) -> None:
    def down(line: Line) -> None:
        stored = {name for view in CONTRACT.views for name in view.features} | {"plane_idle_h"}
        line["vector"].update(dict.fromkeys(stored & set(line["vector"])))
        line["fallback_reason"] = "both_failed: store_unavailable, fallback_timeout"

    found = world.audited(changed(world, down))

    assert (found.parity.unread, found.parity.compared, found.parity.exact_share) == (REQUESTS, 0, None)
    assert found.parity.worst == ()


def test_an_audit_that_could_compare_nothing_does_not_pass(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(skew_job, "settings", lambda: world.settings)
    world.audited(changed(world, lambda line: line.update(fallback_reason="store_unavailable")))

    assert skew_job.main([]) == 2
    assert "none of 400 vectors can be compared" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_a_damaged_registry_is_named(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    (settings.state_dir / "registry.db").write_bytes(damage)
    monkeypatch.setattr(skew_job, "settings", lambda: settings)

    assert skew_job.main([]) == 2
    assert "registry.db is empty or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("nth", [2, 10])
def test_a_scrambled_encoding_on_part_of_the_traffic_is_named(world: World, nth: int) -> None:
    order = dict(zip(KEYS["carrier"], ("UA", "AA", "B6", "DL"), strict=True))

    def scramble(line: Line) -> None:
        if int(line["request_id"][1:]) % nth == 0:
            line["vector"]["carrier"] = order[line["vector"]["carrier"]]

    cause = the_one(world.audited(changed(world, scramble)), "carrier").cause

    assert cause is not None
    assert cause.text.endswith(f"AA as UA, B6 as AA, DL as B6, UA as DL, in {1 / nth:.0%} of the vectors")


def test_a_row_of_the_future_is_named_and_counted(world: World) -> None:
    lines = copy.deepcopy(world.logs.predictions)
    view = next(v for v in CONTRACT.views if v.name == "origin_weather")
    after = world.joined(lines, lambda line: line["event_times"]["origin_weather"] + timedelta(hours=1))
    for line, vector in zip(lines, after, strict=True):
        line["vector"].update({name: vector[name] for name in view.features})
        line["event_times"]["origin_weather"] += timedelta(hours=1)

    found = world.audited(lines)

    assert set(kinds(found).values()) == {"early"}
    assert found.parity.ahead["origin_weather"] == REQUESTS
    assert not skew_job.clean(found)


def test_of_several_instants_that_explain_the_nearest_is_named(world: World) -> None:
    slow = {name for view in CONTRACT.views if view.name in ("route_record", "plane_record") for name in view.features}
    lines = copy.deepcopy(world.logs.predictions)
    for line, vector in zip(lines, world.joined(lines, lambda line: line["at"] - timedelta(hours=1)), strict=True):
        line["vector"].update({name: value for name, value in vector.items() if name in slow})

    found = world.audited(lines)

    assert {f.cause.text for f in found.parity.worst if f.cause} == {
        "the values are those of 1 h earlier: another clock or time zone?"
    }


def test_what_was_never_read_is_not_a_change_of_distribution(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = copy.deepcopy(world.logs.predictions)
    reference = pd.DataFrame([line["vector"] for line in lines])
    monkeypatch.setattr("monitoring.skew._sample", lambda *_: ("digest", reference))
    for line in lines[::2]:
        line["vector"]["temp"] = None
        line["fallback_reason"] = "store_unavailable"

    found = world.audited(lines)

    assert found.parity.unread == REQUESTS // 2
    assert [shift for shift in found.shifts if shift.alarm] == []


def test_predictions_are_reproduced_from_vector_and_package(world: World) -> None:
    from service.roles import load_role

    seat_model(world.settings, "primary", seed=1)
    seat = read_roles(world.settings.models_dir).seats["primary"]
    model = load_role(world.settings.models_dir, "primary")
    lines = copy.deepcopy(world.logs.predictions)
    for line in lines:
        line["model_digest"], line["prediction"] = seat.digest, model.score([line["vector"]])[0]

    good = world.audited(lines)
    lines[5]["prediction"] += 1e-6
    lines[6]["model_digest"] = "f" * 64
    bad = world.audited(lines)

    assert (good.scores.compared, good.scores.equal) == (REQUESTS, REQUESTS)
    assert (bad.scores.compared, bad.scores.equal, bad.scores.unknown) == (REQUESTS - 1, REQUESTS - 2, ("f" * 64,))
    assert not skew_job.clean(bad)


def test_without_a_log_or_a_registry_it_says_what_to_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotReady, match="no predictions in"):
        audit(world.store, CONTRACT, tmp_path, tmp_path)
    monkeypatch.setattr(skew_job, "settings", lambda: settings_in(tmp_path))
    assert skew_job.main([]) == 2
    assert "holds no feature registry; run `make train` first" in capsys.readouterr().err


def test_the_command_prints_page_and_json_and_fails_on_skew(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(skew_job, "settings", lambda: world.settings)
    world.audited(world.logs.predictions)

    assert skew_job.main([]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["vectors"], last["exact_share"], last["worst_features"]) == (REQUESTS, 1.0, [])
    world.audited(changed(world, lambda line: line["vector"].update(temp=0.0)))
    assert skew_job.main([]) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])["worst_features"][0]["feature"] == "temp"
    page = (world.settings.state_dir / "reports" / "skew.html").read_text()
    assert "temp" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def sample(rows: int, seed: int, **changes: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({spec.name: rng.normal(10, 3, rows) for spec in CONTRACT.fields if not spec.is_category})
    for spec in CONTRACT.fields:
        if spec.is_category:
            frame[spec.name] = rng.choice(["AA", "B6", "UA"], rows)
    return frame.assign(**changes)


def alarms(serving: pd.DataFrame) -> dict[str, str]:
    return {s.feature: s.alarm for s in shifts(sample(5000, 1), serving, CONTRACT) if s.alarm}


def test_equal_distributions_raise_no_alarm() -> None:
    assert alarms(sample(3000, 2)) == {}


def test_shifts_missing_features_and_nulls_each_have_their_alarm() -> None:
    moved = sample(3000, 2)
    moved["temp"] += 3.0
    moved["humid"] = None
    moved.loc[moved.index % 2 == 0, "precip"] = None
    moved["carrier"] = "AA"

    assert alarms(moved) == {"carrier": "shifted", "temp": "shifted", "humid": "missing", "precip": "nulls"}
    assert alarms(moved.drop(columns="humid"))["humid"] == "missing"


def test_an_outlier_does_not_hide_a_shift() -> None:
    moved = sample(3000, 2)
    moved["temp"] += 3.0
    moved.loc[0, "temp"] = 1e6

    assert alarms(moved) == {"temp": "shifted"}


def test_a_few_nulls_in_a_row_are_not_a_missing_feature() -> None:
    training = sample(5000, 1)
    training.loc[training.index % 4 != 0, "wind_gust"] = None
    few, many = sample(9, 2, wind_gust=None), sample(40, 2, wind_gust=None)

    assert [s.alarm for s in shifts(training, few, CONTRACT) if s.feature == "wind_gust"] == [""]
    assert [s.alarm for s in shifts(training, many, CONTRACT) if s.feature == "wind_gust"] == ["missing"]
    assert {s.alarm for s in shifts(training, few.head(0), CONTRACT)} == {""}


def test_large_whole_numbers_are_compared_exactly() -> None:
    spec = CONTRACT.spec("route_outcomes_14d")
    served = pd.Series([2**53, 2**53, None, 3.5], dtype="Float64").astype(object)
    served[0] = 2**53 + 1

    equal = same(spec, served, pd.Series([2**53, 2**53, None, 3.5], dtype=object))

    assert equal.tolist() == [False, True, True, True]


def test_too_few_rows_are_no_shift() -> None:
    assert alarms(sample(20, 2, temp=99.0)) == {}


def test_offsets_are_whole_and_both_ways() -> None:
    assert {-offset for offset in OFFSETS} == set(OFFSETS)
