"""The Great Expectations suite of a feature service, generated from its contract and nothing else.

Training runs it on joined rows before every fit, monitoring on logged vectors. No serving process imports this module:
the serving image holds no Great Expectations, and importing it takes 5 s.

``meta["fault"]`` of every expectation says in words what its failure means.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

# great-expectations 1.24.1 holds no code that sends anything; one that does again finds it off.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, Expectation
from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial
from great_expectations.render import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer

from service.contract import Contract, Dtype, FieldSpec
from service.validation import ID, LABEL, STAMP, Tolerances

# A point-in-time join returns whole numbers beside nulls as floats.
_WHOLE = ["int64", "int32", "int16", "int8", "Int64Dtype", "Int32Dtype", "int"]
_NUMBER = [*_WHOLE, "float64", "float32", "Float64Dtype", "Float32Dtype", "float"]
_TYPES: dict[Dtype, list[str]] = {
    "float": _NUMBER,
    "int": _NUMBER,
    "str": ["str", "StringDtype"],
    "bool": ["bool", "BooleanDtype"],
}
_LEAST_SPREAD = 0.1


class ColumnValuesWhole(ColumnMapMetricProvider):  # type: ignore[misc]  # great_expectations is skipped
    """Whether numbers have no fraction."""

    condition_metric_name = "column_values.whole"

    @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]  # same
    def _pandas(cls, column: pd.Series[Any], **_: Any) -> pd.Series[Any]:  # noqa: N805  # GX binds the class
        return pd.to_numeric(column, errors="coerce") % 1 == 0


class ExpectColumnValuesToBeWhole(ColumnMapExpectation):  # type: ignore[misc]  # same
    """Expect numbers without a fraction, whatever type holds them."""

    map_metric = "column_values.whole"

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)  # type: ignore[untyped-decorator]  # same
    def _prescriptive_renderer(cls, **_: Any) -> list[RenderedStringTemplateContent]:
        return [RenderedStringTemplateContent(string_template={"template": "values must be whole numbers."})]


def suite(
    contract: Contract,
    *,
    name: str,
    at: datetime,
    tolerances: Tolerances,
    label: bool = True,
    baseline: Mapping[str, Any] | None = None,
) -> gx.ExpectationSuite:
    """Return what a frame of a feature service must look like.

    Args:
        at: the moment the frame stands at; its newest row must be older, but not much.
        label: whether the frame has a ``label``; logged vectors have none.
        baseline: what the model before saw (``baseline.json``); without it there are no bands.
    """
    looked_up = {name for view in contract.views for name in view.features}
    looked_up |= {name for step in contract.on_demand if step.sources for name in step.features}
    described = (baseline or {}).get("features", {})
    found: list[Expectation] = [*_frame(at, tolerances), *(_label() if label else ())]
    for spec in contract.fields:
        found += _feature(spec, tolerances, spec.name in looked_up)
        found += _bands(spec, tolerances, described.get(spec.name, {}))
    return gx.ExpectationSuite(name=name, expectations=found)


def _frame(at: datetime, tolerances: Tolerances) -> Iterable[Expectation]:
    # An empty frame passes every other expectation (great-expectations 1.24).
    yield gxe.ExpectTableRowCountToBeBetween(
        min_value=tolerances.rows, meta=_fault(f"there are fewer than {tolerances.rows} rows")
    )
    for column in (ID, STAMP):
        yield _there(column)
        yield _not_null(column, 1.0)
    yield gxe.ExpectColumnValuesToBeUnique(column=ID, meta=_fault("are not unique"))
    oldest = at - tolerances.fresh
    yield gxe.ExpectColumnMaxToBeBetween(
        column=STAMP,
        min_value=oldest,
        max_value=at,
        meta=_fault(f"the newest row is not from {oldest:%Y-%m-%dT%H:%MZ} to {at:%Y-%m-%dT%H:%MZ}"),
    )


def _label() -> Iterable[Expectation]:
    yield _there(LABEL)
    yield _not_null(LABEL, 1.0)
    yield gxe.ExpectColumnValuesToBeInSet(column=LABEL, value_set=[0, 1], meta=_fault("are not 0 or 1"))


def _feature(spec: FieldSpec, tolerances: Tolerances, looked_up: bool) -> Iterable[Expectation]:
    column, mostly = spec.name, tolerances.mostly
    yield _there(column)
    yield gxe.ExpectColumnValuesToBeInTypeList(
        column=column, type_list=_TYPES[spec.dtype], meta=_fault(f"are not of type {spec.dtype}")
    )
    # Ranges and sets pass where nothing is known: without a share of known values an empty column would pass.
    known = tolerances.known if spec.nullable else tolerances.found if looked_up else mostly
    if known > 0:
        yield _not_null(column, known)
    if spec.dtype == "int":
        yield ExpectColumnValuesToBeWhole(column=column, mostly=mostly, meta=_fault("are not whole numbers"))
    if spec.minimum is not None or spec.maximum is not None:
        low, high = spec.minimum, spec.maximum
        yield gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, mostly=mostly, meta=_fault(f"are not {_span(low, high)}")
        )
    if spec.allowed:
        yield gxe.ExpectColumnValuesToBeInSet(
            column=column,
            value_set=list(spec.allowed),
            mostly=mostly,
            meta=_fault(f"are not one of {', '.join(spec.allowed)}"),
        )


def _bands(spec: FieldSpec, tolerances: Tolerances, described: Mapping[str, Any]) -> Iterable[Expectation]:
    column = spec.name
    if "null_rate" in described:
        rate = described["null_rate"]
        width = tolerances.nulls * max(math.sqrt(rate * (1 - rate)), _LEAST_SPREAD)
        low, high = max(0.0, 1 - rate - width), min(1.0, 1 - rate + width)
        yield gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
            column=column,
            min_value=_round(low),
            max_value=_round(high),
            meta=_fault(f"the share of known values is not {_span(low, high)} (the model before: {1 - rate:.4g})"),
        )
    if "shares" in described and spec.dtype == "str":
        yield gxe.ExpectColumnValuesToBeInSet(
            column=column,
            value_set=list(described["shares"]),
            mostly=tolerances.familiar,
            meta=_fault("are categories the model before never saw"),
        )
    if "mean" in described and not spec.is_category:
        mean, std = described["mean"], described["std"]
        # A baseline keeps ten digits: a constant's mean is not met to the last bit.
        width = max(tolerances.mean * std, 1e-6 * max(1.0, abs(mean)))
        yield gxe.ExpectColumnMeanToBeBetween(
            column=column,
            min_value=_round(mean - width),
            max_value=_round(mean + width),
            meta=_fault(
                f"the mean is not {_span(mean - width, mean + width)} (the model before: {mean:.4g}, "
                f"standard deviation {std:.4g})"
            ),
        )


def _there(column: str) -> Expectation:
    return gxe.ExpectColumnToExist(column=column, meta=_fault("the column is missing"))


def _not_null(column: str, mostly: float) -> Expectation:
    share = "" if mostly == 1 else f" (at least {100 * mostly:g} % must be known)"
    return gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=mostly, meta=_fault(f"are null{share}"))


def _fault(text: str) -> dict[str, Any]:
    return {"fault": text}


def _round(value: float) -> float:
    return float(f"{value:.9g}")


def _span(low: float | None, high: float | None) -> str:
    parts: Sequence[tuple[str, float | None]] = (("from", low), ("to", high))
    return " ".join(f"{word} {value:.6g}" for word, value in parts if value is not None)
