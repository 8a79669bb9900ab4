"""The contract is what the tags say, and a wrong tag is an error that names its place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String, UnixTimestamp
from pydantic import ValidationError

from feature_repo import features as definitions
from service.contract import Contract, duration, shown
from service.definitions import contracts
from service.door import request_model
from service.errors import ContractError
from tests.bundle import primary_contract


def shop(*, tags: dict[str, str] | None = None, view_tags: dict[str, str] | None = None) -> dict[str, Any]:
    """Another problem's definitions: nothing in the machinery may depend on the reference one."""
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    spending = FeatureView(
        name="spending",
        entities=[user],
        ttl=timedelta(days=1),
        schema=[Field(name="user_id", dtype=Int64), Field(name="spent_7d", dtype=Float64, tags=tags or {"min": "0"})],
        source=FileSource(path="x.parquet", timestamp_field="event_timestamp"),
        tags=view_tags or {},
    )
    basket = RequestSource(
        name="basket", schema=[Field(name="amount", dtype=Float64), Field(name="at", dtype=UnixTimestamp)]
    )

    @on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast carries no types
        name="ratio",
        sources=[basket, spending],
        mode="python",
        schema=[Field(name="share", dtype=Float64)],
        tags={"share": "min=0 nullable=true"},
    )
    def ratio(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"share": [a / s if s else None for a, s in zip(inputs["amount"], inputs["spent_7d"], strict=True)]}

    service = FeatureService(name="primary", features=[spending, ratio], tags={"slices": "user_id"})
    return {"user": user, "spending": spending, "ratio": ratio, "service": service}


def keyed_by(name: str) -> dict[str, Any]:
    """Definitions whose only join key has this name."""
    entity = Entity(name="thing", join_keys=[name], value_type=ValueType.STRING)
    view = FeatureView(
        name="seen",
        entities=[entity],
        ttl=timedelta(days=1),
        schema=[Field(name=name, dtype=String), Field(name="count", dtype=Float64)],
        source=FileSource(path="x.parquet", timestamp_field="event_timestamp"),
    )
    return {"thing": entity, "seen": view, "service": FeatureService(name="primary", features=[view])}


def shop_contract(**changes: Any) -> Contract:
    return contracts(shop(**changes))["primary"]


def test_another_problems_contract_is_read_from_its_definitions() -> None:
    contract = shop_contract(view_tags={"max_staleness": "90m", "policy": "tolerate"})

    assert contract.features == ("spent_7d", "share")
    assert [f.name for f in contract.request_fields] == ["user_id", "amount", "at"]
    assert contract.keys[0].dtype == "int"
    (view,) = contract.views
    assert (view.keys, view.ttl, view.max_staleness, view.policy) == (
        ("user_id",), timedelta(days=1), timedelta(minutes=90), "tolerate",
    )  # fmt: skip
    (step,) = contract.on_demand
    assert step.compute({"amount": [3.0], "spent_7d": [12.0]}) == {"share": [0.25]}


def test_a_view_without_a_limit_is_limited_by_its_ttl() -> None:
    assert shop_contract().views[0].max_staleness == timedelta(days=1)


def test_a_changed_tag_changes_contract_digest_and_request_schema() -> None:
    loose, tight = shop_contract(), shop_contract(tags={"min": "0", "max": "10"})

    assert loose.digest != tight.digest
    assert loose.digest == shop_contract().digest
    assert (loose.spec("spent_7d").maximum, tight.spec("spent_7d").maximum) == (None, 10.0)


def test_the_request_schema_follows_the_closed_set_of_an_entity() -> None:
    schema = request_model(primary_contract()).model_json_schema()

    assert schema["properties"]["origin"]["enum"] == ["EWR", "JFK", "LGA"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": {"min": "low"}}, "field spent_7d: 'low' is not a number"),
        ({"tags": {"min": "2", "max": "1"}}, "field spent_7d: min=2.0 is above max=1.0"),
        ({"tags": {"minimum": "2"}}, "field spent_7d: unknown tag minimum"),
        ({"tags": {"nullable": "yes"}}, "field spent_7d: 'yes' is not true or false"),
        ({"view_tags": {"max_staleness": "soon"}}, "feature view spending: 'soon' is not a duration"),
        ({"view_tags": {"policy": "ignore"}}, "feature view spending: policy='ignore' is not one of degrade, tolerate"),
    ],
)
def test_a_wrong_tag_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message.replace("[", r"\[")):
        shop_contract(**changes)


def test_an_unknown_feature_service_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ContractError, match="there is no feature service primery; the definitions hold primary, request_only"
    ):
        contracts(definitions)["primery"]


def test_a_timestamp_cannot_be_a_model_input() -> None:
    definitions = shop()
    view = FeatureView(
        name="seen",
        entities=[definitions["user"]],
        ttl=timedelta(days=1),
        schema=[Field(name="user_id", dtype=Int64), Field(name="last", dtype=UnixTimestamp)],
        source=FileSource(path="x.parquet", timestamp_field="event_timestamp"),
    )
    definitions |= {"seen": view, "service": FeatureService(name="primary", features=[view])}

    with pytest.raises(ContractError, match="last cannot be a model input"):
        contracts(definitions)


def test_an_unsupported_type_is_named() -> None:
    with pytest.raises(ContractError, match="unknown tag"):
        shop_contract(tags={"tpye": "x"})
    assert str(Field(name="a", dtype=String).dtype) == "String"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_without_limits_must_still_be_finite(value: str) -> None:
    model = request_model(shop_contract())
    body = '{"user_id": 1, "amount": %s, "at": "2013-10-01T12:00:00+00:00"}'

    model.model_validate_json(body % "1e300")
    with pytest.raises(ValidationError, match="finite number"):
        model.model_validate_json(body % value)


@pytest.mark.parametrize(("text", "value"), [("90m", 5400), ("36h", 129600), ("60d", 5184000), ("15s", 15)])
def test_durations_are_read(text: str, value: int) -> None:
    assert duration(text) == timedelta(seconds=value)


@pytest.mark.parametrize("name", ["request_id", "_x", "model_dump", "model_config"])
def test_a_request_field_that_cannot_be_called_that_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match=f"field {name}: a request's field cannot be called that"):
        contracts(keyed_by(name))


@pytest.mark.parametrize("name", ["copy", "json", "schema", "model_year", "class", "self"])
def test_a_request_field_may_be_called_like_a_method_of_the_library(name: str) -> None:
    model = request_model(contracts(keyed_by(name))["primary"])

    assert model.model_validate_json(f'{{"{name}": "x"}}').__dict__[name] == "x"
    assert name in model.model_json_schema()["properties"]


@pytest.mark.parametrize(
    ("limit", "text"),
    [(6000.0, "6000"), (1234567.0, "1234567"), (0.1234567, "0.1234567"), (-0.5, "-0.5"), (1e20, "1e+20")],
)
def test_a_limit_is_shown_as_it_was_written(limit: float, text: str) -> None:
    assert shown(limit) == text
