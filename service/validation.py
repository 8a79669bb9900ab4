"""Runs a suite of expectations on a frame: what failed, where, and a page to look at.

Great Expectations is imported when a frame is validated, not before. Pure but for the page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from service.contract import Contract
from service.errors import DataError, PackageError
from service.package import read_package
from service.progress import Say
from service.roles import read_roles

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

ID, STAMP, LABEL = "request_id", "event_timestamp", "label"
SHOWN = 3
_LISTED = 5
# All that can be said of a frame without rows.
_OF_NOTHING = ("expect_table_row_count_to_be_between", "expect_column_to_exist")


@dataclass(frozen=True)
class Tolerances:
    """How far a frame may stray from its contract and from what the model before saw.

    Attributes:
        rows: fewest rows.
        fresh: greatest age of the newest row.
        mostly: share of the known values that must keep type of number, range and set.
        found: share of rows in which a looked-up feature that must not be null has a value: a key may be new.
        known: share of rows in which a feature that may be null has a value; 0 for no limit.
        mean: greatest distance of a mean from the baseline's, in the baseline's standard deviations.
        nulls: greatest distance of a null rate r from the baseline's, in sqrt(r (1 - r)), at least 0.1.
        familiar: share of the known values that must be categories of the baseline.
    """

    rows: int
    fresh: timedelta
    mostly: float = 1.0
    found: float = 0.8
    known: float = 0.01
    mean: float = 3.0
    nulls: float = 0.5
    familiar: float = 0.9


@dataclass(frozen=True)
class Failure:
    """An expectation a frame does not meet.

    Attributes:
        expectation: its name in Great Expectations.
        column: None for the frame as a whole.
        rows: how many break it; None when it is about the column as a whole.
        observed: what was found instead (a mean, a type, a count).
        fault: what that means.
        examples: ``request_id`` and value of the first rows that break it.
    """

    expectation: str
    column: str | None
    rows: int | None
    observed: Any
    fault: str
    examples: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        text = f"{self.rows:,} rows {self.fault}" if self.rows is not None else self.fault
        shown = ", ".join(key if self.column == ID else f"{key}: {value}" for key, value in self.examples)
        detail = shown or ("" if self.observed is None else f"found {_short(self.observed)}")
        return (f"{self.column}: " if self.column else "") + text + (f" ({detail})" if detail else "")


@dataclass(frozen=True)
class Validation:
    """What a suite found in a frame; ``docs`` is the page."""

    name: str
    rows: int
    expectations: int
    failures: tuple[Failure, ...]
    docs: Path

    @property
    def passed(self) -> bool:
        """Whether the frame may be used."""
        return not self.failures

    def record(self) -> str:
        """Return the result as one line of JSON."""
        plain = {"expectations": self.expectations, "failed": len(self.failures), "rows": self.rows}
        return json.dumps({**plain, "docs": str(self.docs)})

    def require(self) -> None:
        """Refuse a frame that failed.

        Raises:
            DataError: names expectations, rows, first examples and fix.
        """
        if self.passed:
            return
        listed = "; ".join(f"{failure} [{failure.expectation}]" for failure in self.failures[:_LISTED])
        more = len(self.failures) - _LISTED
        msg = (
            f"{self.name}: {len(self.failures)} of {self.expectations} expectations failed on {self.rows:,} rows: "
            f"{listed}{f'; and {more} more' if more > 0 else ''}. Repair the source, or change the contract in "
            f"feature_repo/features.py; all of them: {self.docs}"
        )
        raise DataError(msg)


def validate(frame: pd.DataFrame, suite: ExpectationSuite, folder: Path, say: Say) -> Validation:
    """Run a suite and write Data Docs to ``index.html`` in ``folder``.

    Args:
        frame: any pandas dtypes; ``request_id`` names the rows in examples.
    """
    from service.data_docs import page

    begun = time.perf_counter()
    result = _judge(frame, suite)
    failures = tuple(_failure(frame, found) for found in result.results if not found.success)
    docs = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".index.html.next"
    temporary.write_text(page(result))
    temporary.replace(docs)
    done = Validation(str(suite.name), len(frame), len(result.results), failures, docs)
    verdict = f"{len(failures)} failed" if failures else "all met"
    spent = time.perf_counter() - begun
    say(f"validated {done.name}: {done.expectations} expectations on {done.rows:,} rows, {verdict}, {spent:.1f} s")
    say(f"Data Docs: {docs}")
    return done


def seated_baseline(models_dir: Path, contract: Contract) -> Mapping[str, Any] | None:
    """Return what the seated primary saw; None without one to trust, or when it lacks a feature of the contract."""
    seat = read_roles(models_dir).seats.get("primary")
    if seat is None:
        return None
    try:
        contents = read_package(models_dir / seat.package, seat.digest)
    except PackageError:
        return None
    found: dict[str, Any] = json.loads(contents["baseline.json"])
    return found if set(contract.features) <= set(found.get("features", {})) else None


def _judge(frame: pd.DataFrame, suite: ExpectationSuite) -> ExpectationSuiteValidationResult:
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # Without stores of its own 1.24 makes and removes a temporary folder for a site that is never built.
    in_memory = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(), progress_bars=ProgressBarsConfig(globally=False)
    )
    context = gx.get_context(mode="ephemeral", project_config=in_memory)
    asset = context.data_sources.add_pandas("frame").add_dataframe_asset("frame")
    batches = asset.add_batch_definition_whole_dataframe("frame")
    parts: dict[str | None, list[Any]] = {}
    for expectation in suite.expectations:
        if frame.empty and expectation.expectation_type not in _OF_NOTHING:
            continue
        parts.setdefault(getattr(expectation, "column", None), []).append(expectation)
    results: list[ExpectationValidationResult] = []
    for column, part in parts.items():
        # Column by column: great-expectations 1.24 copies the whole frame for each expectation on a column with nulls.
        batch = batches.get_batch({"dataframe": _held(frame, column)})
        found = batch.validate(
            gx.ExpectationSuite(name=str(suite.name), expectations=part),
            # Without index columns: 1.24 walks all bad rows in Python for them. _examples finds the first few.
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": SHOWN},
        )
        results += _causes(found.results)
    met = sum(bool(found.success) for found in results)
    statistics = {
        "evaluated_expectations": len(results),
        "successful_expectations": met,
        "unsuccessful_expectations": len(results) - met,
        "success_percent": 100 * met / len(results),
    }
    return ExpectationSuiteValidationResult(
        success=met == len(results),
        results=[_plain(frame, found) for found in results],
        suite_name=str(suite.name),
        statistics=statistics,
        meta={"great_expectations_version": gx.__version__},
    )


def _held(frame: pd.DataFrame, column: str | None) -> pd.DataFrame:
    held = frame[[column] if column in frame.columns else []]
    # great-expectations 1.24 knows no type name for string[pyarrow] and category.
    text = [c for c in held.columns if str(held[c].dtype) == "category" or str(held[c].dtype).startswith("str")]
    return held.astype(dict.fromkeys(text, "object"))


def _causes(results: list[ExpectationValidationResult]) -> list[ExpectationValidationResult]:
    """Leave out what cannot be told because of a fault that is named anyway: no column, another type, only nulls."""
    plain = [found for found in results if not _error(found) and found.result.get("observed_value", "") is not None]
    return plain if any(not found.success for found in plain) else results


def _error(found: ExpectationValidationResult) -> str:
    info = found.exception_info or {}
    # One entry, or one per metric (great-expectations 1.24).
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")), "")


def _plain(frame: pd.DataFrame, found: ExpectationValidationResult) -> ExpectationValidationResult:
    """Put Python's numbers for NumPy's, which the page of great-expectations 1.24 cannot write, and name the rows."""
    result = {key: _python(value) for key, value in found.result.items()}
    column = found.expectation_config.kwargs.get("column")
    if not found.success and column != ID and (examples := _examples(frame, found)):
        result["unexpected_index_list"] = [{column: value, ID: key} for key, value in examples]
        result["unexpected_index_column_names"] = [ID]
    found.result = result
    return found


def _python(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    if isinstance(value, dict):
        return {key: _python(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _failure(frame: pd.DataFrame, found: ExpectationValidationResult) -> Failure:
    config, result = found.expectation_config, found.result
    rows = result.get("unexpected_count")
    observed = result.get("observed_value")
    fault = str(config.meta["fault"])
    if config.type == "expect_column_values_to_be_in_type_list" and rows is None:
        # A column of one dtype is judged as a whole.
        rows = len(frame)
    if error := _error(found):
        fault = f"cannot be checked: {error}"
    return Failure(config.type, config.kwargs.get("column"), rows, observed, fault, _examples(frame, found))


def _examples(frame: pd.DataFrame, found: ExpectationValidationResult) -> tuple[tuple[str, Any], ...]:
    config, unexpected = found.expectation_config, found.result.get("partial_unexpected_list")
    column = config.kwargs.get("column")
    if column not in frame.columns or not unexpected:
        return ()
    values = frame[column]
    bad = values.isna() if config.type == "expect_column_values_to_not_be_null" else values.isin(unexpected)
    first = np.flatnonzero(bad.to_numpy(dtype=bool))[:SHOWN]
    keys = frame[ID] if ID in frame.columns else frame.index.to_series().map("row {}".format)
    return tuple((str(keys.iloc[i]), _written(values.iloc[i])) for i in first)


def _written(value: Any) -> Any:
    if not pd.api.types.is_list_like(value) and pd.isna(value):
        return "null"
    return _python(value)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
