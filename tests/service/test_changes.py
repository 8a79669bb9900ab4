"""A contract that got looser than the one a model was trained on is noticed, whatever got looser."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy import plan
from feature_repo import features as definitions
from service.changes import Change, changes, refuse
from service.definitions import _code, contracts
from service.errors import ContractError
from tests.bundle import make_bundle, primary_contract

RECORD = primary_contract().record()


def edited(part: str, name: str, **values: Any) -> dict[str, Any]:
    """The contract with some values of one entry changed."""
    record = copy.deepcopy(RECORD)
    for entry in record[part]:
        if entry["name"] == name:
            entry.update(values)
    return record


@pytest.mark.parametrize(
    ("part", "name", "values", "kind"),
    [
        ("fields", "temp", {"minimum": -50.0}, "looser"),
        ("fields", "temp", {"minimum": None}, "looser"),
        ("fields", "temp", {"minimum": -30.0}, "tighter"),
        ("fields", "temp", {"maximum": 121.0}, "looser"),
        ("fields", "temp", {"maximum": None}, "looser"),
        ("fields", "temp", {"maximum": 100.0}, "tighter"),
        ("fields", "visib", {"nullable": True}, "looser"),
        ("fields", "temp", {"nullable": False}, "tighter"),
        ("fields", "temp", {"dtype": "int"}, "breaking"),
        ("fields", "carrier", {"allowed": ["UA"]}, "tighter"),
        ("keys", "origin", {"allowed": ["EWR", "JFK", "LGA", "SWF"]}, "looser"),
        ("keys", "origin", {"allowed": []}, "looser"),
        ("keys", "origin", {"allowed": ["EWR", "JFK"]}, "tighter"),
        ("inputs", "scheduled_departure", {"latest": 1e6}, "looser"),
        ("inputs", "scheduled_departure", {"earliest": -60.0}, "looser"),
        ("inputs", "scheduled_departure", {"earliest": 60.0}, "tighter"),
        ("views", "origin_weather", {"max_staleness": 36000.0}, "looser"),
        ("views", "origin_weather", {"ttl": None}, "looser"),
        ("views", "origin_weather", {"ttl": 60.0}, "tighter"),
        ("views", "origin_weather", {"policy": "tolerate"}, "looser"),
        ("views", "route_record", {"policy": "degrade"}, "tighter"),
        ("views", "origin_weather", {"keys": ["carrier"]}, "breaking"),
        ("views", "origin_weather", {"features": ["temp"]}, "breaking"),
        ("on_demand", "departure", {"code": "def departure(inputs): return {}"}, "breaking"),
        ("on_demand", "turnaround", {"sources": []}, "breaking"),
    ],
)
def test_every_change_has_its_kind(part: str, name: str, values: dict[str, Any], kind: str) -> None:
    found = changes(RECORD, edited(part, name, **values))

    assert {(c.where, c.kind) for c in found} == {(name, kind)}


def test_what_a_model_does_not_use_is_no_change() -> None:
    wider = copy.deepcopy(RECORD)
    wider["fields"].append({**wider["fields"][0], "name": "new"})
    wider["views"][0]["features"].append("new")
    wider["fields"][0]["description"] = "said better"
    wider["slices"] = []

    assert changes(RECORD, wider) == []


@pytest.mark.parametrize("part", ["keys", "inputs", "fields", "views", "on_demand"])
def test_what_was_removed_breaks(part: str) -> None:
    less = copy.deepcopy(RECORD)
    gone = less[part].pop()

    assert Change(gone["name"], "definition", "present", None, "breaking") in changes(RECORD, less)


def test_another_output_or_meaning_breaks() -> None:
    assert [c.kind for c in changes(RECORD, {**RECORD, "positive": "is on time"})] == ["breaking"]


def test_a_functions_code_is_what_it_does_and_not_how_it_is_written() -> None:
    plain = "def f(inputs):\n    return {'a': inputs['x']}"
    dressed = '@decorated(\n    x=1)\ndef f( inputs ):  # so\n    """Says it."""\n\n    return {"a": inputs["x"]}\n'

    assert _code(plain) == _code(dressed)
    assert _code(plain) != _code(plain.replace("inputs['x']", "inputs['y']"))


def test_a_build_is_refused_by_role_and_value(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    known = contracts(definitions)
    refuse(bundle.settings, known)
    view = replace(bundle.contract.views[0], max_staleness=timedelta(hours=5))
    looser = replace(bundle.contract, views=(view, *bundle.contract.views[1:]))

    with pytest.raises(ContractError) as caught:
        refuse(bundle.settings, {**known, "primary": looser})

    assert "primary: looser origin_weather: max_staleness 3 h -> 5 h" in str(caught.value)
    assert "shadow: looser" in str(caught.value)
    assert "fallback" not in str(caught.value)
    with pytest.raises(ContractError, match=r"fallback: breaking request_only: feature service defined -> none"):
        refuse(bundle.settings, {"primary": bundle.contract})


def test_the_plan_lists_changes_and_says_whether_a_build_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path)
    monkeypatch.setattr(plan, "settings", lambda: bundle.settings)

    assert plan.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["refused"] == 0
    tighter = replace(
        bundle.contract, fields=(replace(bundle.contract.fields[0], allowed=("EWR",)), *bundle.contract.fields[1:])
    )
    monkeypatch.setattr(plan, "contracts", lambda _: {**contracts(definitions), "primary": tighter})
    assert plan.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tighter"] > 0
    view = replace(bundle.contract.views[0], ttl=None)
    looser = replace(bundle.contract, views=(view, *bundle.contract.views[1:]))
    monkeypatch.setattr(plan, "contracts", lambda _: {**contracts(definitions), "primary": looser})
    assert plan.main() == 1
    assert "looser   origin_weather: ttl 6 h -> none" in capsys.readouterr().out
