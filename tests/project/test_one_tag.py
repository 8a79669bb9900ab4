"""A limit is written once: one changed tag changes everything that is derived from it."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest

from feature_repo import features as definitions
from monitoring.distributions import shifts
from monitoring.drift_report import split_halves
from service.changes import changes
from service.contract import Contract
from service.definitions import contracts
from service.door import request_model
from service.errors import DataError
from service.features import Stored
from service.validation import Tolerances
from service.vector import build_vector
from tests.bundle import NOW, STORED, parsed_request
from tests.project.generate import _features, _request
from training.conform import conform_view

BEFORE = contracts(definitions)["primary"]


def with_tags(name: str, **tags: str) -> Contract:
    """The primary's contract with tags of one definition replaced."""
    changed = copy.copy(getattr(definitions, name))
    changed.tags = {**changed.tags, **tags}
    return contracts({**vars(definitions), name: changed})["primary"]


def expectations(contract: Contract, column: str) -> dict[str, Any]:
    """The suite's expectations on one column, by type."""
    from service.expectations import suite

    made = suite(contract, name="t", at=NOW, tolerances=Tolerances(rows=1, fresh=timedelta(days=1)))
    plain = made.to_json_dict()["expectations"]
    return {e["type"]: e["kwargs"] for e in plain if e["kwargs"].get("column") == column}


def violations(contract: Contract, **request: Any) -> set[tuple[str, str]]:
    """Feature and kind of what is wrong with the toy request's vector."""
    stored = Stored(STORED, dict.fromkeys(STORED, NOW))
    return {(v.feature, v.kind) for v in build_vector(contract, parsed_request(**request), stored, NOW).violations}


def drift_columns(contract: Contract) -> tuple[set[str], set[str]]:
    """Numbers and categories of the drift report."""
    row = {f"vector.{n}": ("UA" if n in ("origin", "carrier") else 1.0) for n in contract.features}
    frame = pd.DataFrame(
        [{**row, "at": NOW + timedelta(minutes=i), "prediction": 0.1, "shadow_prediction": 0.1} for i in range(200)]
    )
    halves = split_halves(frame, contract)
    assert halves is not None
    return set(halves.numbers), set(halves.categories)


def test_a_narrower_closed_set_reaches_everything() -> None:
    after = with_tags("origin", allowed="JFK,LGA")

    assert request_model(after).model_json_schema()["properties"]["origin"]["enum"] == ["JFK", "LGA"]
    assert ("origin", "category") not in violations(BEFORE)
    assert ("origin", "category") in violations(after)
    sets = [expectations(c, "origin")["expect_column_values_to_be_in_set"]["value_set"] for c in (BEFORE, after)]
    assert [sorted(s) for s in sets] == [["EWR", "JFK", "LGA"], ["JFK", "LGA"]]
    assert "one of JFK, LGA" in _request(after)
    assert "one of JFK, LGA" in _features(after)
    view = next(v for v in after.views if v.name == "origin_traffic")
    table = pd.DataFrame([{**STORED["origin_traffic"], "event_timestamp": NOW}])
    table = table.astype({"event_timestamp": "datetime64[us, UTC]"})
    conform_view(view, table, BEFORE)
    with pytest.raises(DataError, match="are not one of JFK, LGA"):
        conform_view(view, table, after)
    assert BEFORE.digest != after.digest
    assert [c.kind for c in changes(BEFORE.record(), after.record())] == ["tighter"]
    assert [c.kind for c in changes(after.record(), BEFORE.record())] == ["looser"]


def test_a_tighter_range_reaches_everything() -> None:
    after = with_tags("departure", dep_hour="min=0 max=5")

    assert ("dep_hour", "range") not in violations(BEFORE)
    assert ("dep_hour", "range") in violations(after)
    kind = "expect_column_values_to_be_between"
    assert [expectations(c, "dep_hour")[kind]["max_value"] for c in (BEFORE, after)] == [23, 5]
    assert "a whole number from 0 to 5" in _features(after)
    assert BEFORE.digest != after.digest


def test_a_feature_that_becomes_a_category_is_compared_as_one() -> None:
    after = with_tags("departure", dep_hour="min=0 max=23 categorical=true")

    assert "dep_hour" in drift_columns(BEFORE)[0]
    assert "dep_hour" in drift_columns(after)[1]
    sample = pd.DataFrame({name: [1.0] * 200 for name in BEFORE.features})
    ks = [{s.feature: s.ks for s in shifts(sample, sample, c)}["dep_hour"] for c in (BEFORE, after)]
    assert ks == [0.0, None]


def test_a_shorter_limit_of_age_reaches_the_vector_and_the_page() -> None:
    after = with_tags("origin_weather", max_staleness="5m")
    stored = Stored(STORED, dict.fromkeys(STORED, NOW - timedelta(minutes=10)))

    kinds = [
        {(v.feature, v.kind) for v in build_vector(c, parsed_request(), stored, NOW).violations}
        for c in (BEFORE, after)
    ]

    assert kinds == [set(), {("origin_weather", "stale")}]
