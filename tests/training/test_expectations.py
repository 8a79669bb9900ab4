"""The suite says what the contract says, and every kind of fault is named with rows and examples."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64, String

from service.contract import Contract
from service.definitions import contracts
from service.errors import DataError
from service.package import Signature, save_package
from service.roles import Seat, move_roles, read_roles
from service.settings import ROOT
from service.validation import Failure, Tolerances, Validation, seated_baseline, validate
from tests.bundle import SAMPLE, TOYS
from training.estimators import FITTERS

AT = datetime(2030, 5, 1, 12, tzinfo=UTC)
ROWS = 200
TOLERANCES = Tolerances(rows=100, fresh=timedelta(days=1))
BASELINE = {
    "features": {
        "heat": {"null_rate": 0.5, "mean": 5.0, "std": 1.0},
        "level": {"null_rate": 0.0, "mean": 20.0, "std": 5.0},
        "kind": {"null_rate": 0.0, "shares": {"x": 0.5, "y": 0.5}},
    }
}
Change = Callable[[pd.DataFrame], pd.DataFrame]
Run = Callable[..., Validation]


def plant(*, tags: dict[str, str] | None = None) -> Contract:
    """A contract with one feature of each kind; ``tags`` are those of ``heat``."""
    machine = Entity(name="site", join_keys=["site"], value_type=ValueType.STRING, tags={"allowed": "a,b"})
    readings = FeatureView(
        name="readings",
        entities=[machine],
        ttl=timedelta(days=1),
        schema=[
            Field(name="site", dtype=String),
            Field(name="heat", dtype=Float64, tags=tags or {"min": "0", "max": "10", "nullable": "true"}),
            Field(name="hits", dtype=Int64, tags={"min": "0"}),
            Field(name="kind", dtype=String),
            Field(name="open", dtype=Bool),
        ],
        source=FileSource(path="x.parquet", timestamp_field="event_timestamp"),
    )
    asked = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast carries no types
        name="measured", sources=[asked], mode="python", schema=[Field(name="level", dtype=Float64)]
    )
    def measured(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"level": inputs["amount"]}

    service = FeatureService(name="primary", features=[readings, measured], tags={"key_features": "site"})
    return contracts({"site": machine, "readings": readings, "measured": measured, "service": service})["primary"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Joined rows as the contract wants them: whole numbers beside nulls are floats, half of ``heat`` is null."""
    n = np.arange(ROWS)
    return pd.DataFrame(
        {
            "request_id": [f"r{i:03d}" for i in n],
            "event_timestamp": pd.Series([AT - timedelta(hours=int(ROWS - i)) for i in n]).astype(
                pd.DatetimeTZDtype("us", "UTC")  # type: ignore[arg-type]  # the stubs know ns only
            ),
            "label": (n % 4 == 0).astype(float),
            "site": np.where(n % 2, "a", "b"),
            "heat": np.where(n % 2, 4.0 + n % 3, np.nan),
            "hits": np.where(n == 50, np.nan, n),
            "kind": np.where(n % 3, "x", "y"),
            "open": n % 2 == 0,
            "level": 15.0 + n % 11,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Validate a frame against the toy contract; keyword arguments are the suite's."""
    from service.expectations import suite

    folder = tmp_path_factory.mktemp("validation")

    def go(frame: pd.DataFrame, contract: Contract | None = None, **more: Any) -> Validation:
        expected = suite(contract or plant(), **{"name": "toy", "at": AT, "tolerances": TOLERANCES, **more})
        return validate(frame, expected, folder, lambda _: None)

    return go


def put(column: str, value: Any, *rows: int) -> Change:
    """Put a value into some rows of a column."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].astype(object) if isinstance(value, str) or value is None else frame[column].copy()
        values.iloc[list(rows)] = value
        return frame.assign(**{column: values})

    return change


@dataclass(frozen=True)
class Fault:
    """A planted fault and what must be said about it."""

    change: Change
    expectation: str
    column: str | None
    rows: int | None
    text: str


FAULTS: dict[str, Fault] = {
    "a missing column": Fault(
        lambda f: f.drop(columns="heat"), "expect_column_to_exist", "heat", None, "heat: the column is missing"
    ),
    "one text among numbers": Fault(
        put("level", "much", 7),
        "expect_column_values_to_be_in_type_list", "level", 1, r"level: 1 rows are not of type float \(r007: much\)",
    ),
    "a column of another type": Fault(
        lambda f: f.assign(hits=f["hits"] > 3),
        "expect_column_values_to_be_in_type_list", "hits", ROWS, r"hits: 200 rows are not of type int \(found bool\)",
    ),
    "numbers for categories": Fault(
        lambda f: f.assign(kind=7),
        "expect_column_values_to_be_in_type_list", "kind", ROWS, r"kind: 200 rows are not of type str \(found int64\)",
    ),
    "a null a request cannot bring": Fault(
        put("level", np.nan, 3, 9),
        "expect_column_values_to_not_be_null", "level", 2, r"level: 2 rows are null \(r003: null, r009: null\)",
    ),
    "too many nulls of a lookup": Fault(
        put("hits", np.nan, *range(50)),
        "expect_column_values_to_not_be_null", "hits", 51, r"51 rows are null \(at least 80 % must be known\) \(r000:",
    ),
    "nothing but nulls where they are allowed": Fault(
        lambda f: f.assign(heat=np.nan),
        "expect_column_values_to_not_be_null", "heat", ROWS, r"heat: 200 rows are null \(at least 1 % must be known\)",
    ),
    "a value below": Fault(
        put("heat", -1.0, 5), "expect_column_values_to_be_between", "heat", 1, r"from 0 to 10 \(r005: -1.0\)"
    ),
    "values above": Fault(
        put("heat", 11.0, 5, 6, 7, 8, 9),
        "expect_column_values_to_be_between", "heat", 5, r"heat: 5 rows .* \(r005: 11.0, r006: 11.0, r007: 11.0\)",
    ),
    "infinity": Fault(
        put("heat", np.inf, 5), "expect_column_values_to_be_between", "heat", 1, r"heat: 1 rows .* \(r005: inf\)"
    ),
    "half a hit": Fault(
        put("hits", 7.5, 7), "expect_column_values_to_be_whole", "hits", 1, r"are not whole numbers \(r007: 7.5\)"
    ),
    "a key outside its set": Fault(
        put("site", "c", 5), "expect_column_values_to_be_in_set", "site", 1, r"are not one of a, b \(r005: c\)"
    ),
    "a label that is half true": Fault(
        put("label", 0.5, 5), "expect_column_values_to_be_in_set", "label", 1, r"label: 1 rows are not 0 or 1 \(r005:"
    ),
    "a row without label": Fault(
        put("label", np.nan, 5), "expect_column_values_to_not_be_null", "label", 1, r"label: 1 rows are null \(r005"
    ),
    "an id given twice": Fault(
        put("request_id", "r000", 4),
        "expect_column_values_to_be_unique", "request_id", 2, r"request_id: 2 rows are not unique \(r000, r000\)",
    ),
    "no rows": Fault(
        lambda f: f.head(0),
        "expect_table_row_count_to_be_between", None, None, r"there are fewer than 100 rows \(found 0\)",
    ),
    "too few rows": Fault(
        lambda f: f.tail(99), "expect_table_row_count_to_be_between", None, None, r"fewer than 100 rows \(found 99\)"
    ),
    "rows that are old": Fault(
        lambda f: f.assign(event_timestamp=f["event_timestamp"] - timedelta(days=1)),
        "expect_column_max_to_be_between", "event_timestamp", None,
        r"event_timestamp: the newest row is not from 2030-04-30T12:00Z to .* \(found 2030-04-30 11:00:00\+00:00\)",
    ),
    "rows of the future": Fault(
        lambda f: f.assign(event_timestamp=f["event_timestamp"] + timedelta(hours=2)),
        "expect_column_max_to_be_between", "event_timestamp", None, r"\(found 2030-05-01 13:00:00\+00:00\)",
    ),
    "times without a zone": Fault(
        lambda f: f.assign(event_timestamp=f["event_timestamp"].dt.tz_localize(None)),
        "expect_column_max_to_be_between", "event_timestamp", None, "cannot be checked: can't compare offset-naive",
    ),
}  # fmt: skip
SHIFTS: dict[str, Fault] = {
    "a mean that moved": Fault(
        lambda f: f.assign(heat=f["heat"] + 3.5),
        "expect_column_mean_to_be_between", "heat", None,
        r"heat: the mean is not from 2 to 8 \(the model before: 5, standard deviation 1\) \(found 8\.\d+\)",
    ),
    "nulls that became a number": Fault(
        lambda f: f.assign(heat=f["heat"].fillna(5.0)),
        "expect_column_proportion_of_non_null_values_to_be_between", "heat", None,
        r"heat: the share of known values is not from 0.25 to 0.75 \(the model before: 0.5\) \(found 1\)",
    ),
    "categories of another world": Fault(
        put("kind", "z", *range(30)),
        "expect_column_values_to_be_in_set", "kind", 30, "kind: 30 rows are categories the model before never saw",
    ),
}  # fmt: skip


def test_a_good_frame_passes_with_and_without_a_model_before(frame: pd.DataFrame, run: Run) -> None:
    plain, banded = run(frame), run(frame, baseline=BASELINE)

    assert (plain.failures, banded.failures) == ((), ())
    assert banded.expectations == plain.expectations + 6
    assert json.loads(plain.record()) == {
        "expectations": plain.expectations, "failed": 0, "rows": ROWS, "docs": str(plain.docs),
    }  # fmt: skip
    plain.require()


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ("kind", "string"), ("kind", "string[pyarrow]"), ("kind", "category"), ("site", "category"),
        ("hits", "Int64"), ("hits", "Float64"), ("heat", "Float64"), ("heat", "float32"), ("level", "object"),
        ("open", "boolean"), ("open", "object"), ("event_timestamp", "datetime64[ns, UTC]"),
    ],
)  # fmt: skip
def test_a_good_frame_passes_whatever_holds_it(column: str, dtype: Any, frame: pd.DataFrame, run: Run) -> None:
    assert run(frame.astype({column: dtype}), baseline=BASELINE).failures == ()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_alone_with_rows_and_examples(name: str, frame: pd.DataFrame, run: Run) -> None:
    fault = FAULTS[name]

    found = run(fault.change(frame))

    assert [(f.expectation, f.column, f.rows) for f in found.failures] == [
        (fault.expectation, fault.column, fault.rows)
    ]
    with pytest.raises(DataError, match=fault.text) as refused:
        found.require()
    assert fault.expectation in str(refused.value)
    assert str(found.docs) in str(refused.value)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_frame_unlike_what_the_model_before_saw_is_refused(name: str, frame: pd.DataFrame, run: Run) -> None:
    fault = SHIFTS[name]
    changed = fault.change(frame)

    found = run(changed, baseline=BASELINE)

    assert [(f.expectation, f.column, f.rows) for f in found.failures] == [
        (fault.expectation, fault.column, fault.rows)
    ]
    assert re.search(fault.text, str(found.failures[0]))
    assert run(changed).passed


def test_a_fault_in_most_rows_is_shown_by_its_first(frame: pd.DataFrame, run: Run) -> None:
    (failure,) = run(frame.assign(level="much")).failures

    assert failure == Failure(
        "expect_column_values_to_be_in_type_list", "level", ROWS, None, "are not of type float",
        (("r000", "much"), ("r001", "much"), ("r002", "much")),
    )  # fmt: skip


def test_rows_without_ids_are_shown_by_their_place(frame: pd.DataFrame, run: Run) -> None:
    found = run(put("heat", 11.0, 5)(frame).drop(columns="request_id"))

    assert [str(failure) for failure in found.failures] == [
        "request_id: the column is missing", "heat: 1 rows are not from 0 to 10 (row 5: 11.0)",
    ]  # fmt: skip


def test_logged_vectors_have_no_label_and_may_break_a_little(frame: pd.DataFrame, run: Run) -> None:
    logged = put("heat", 11.0, 1)(put("level", np.nan, 2)(frame)).drop(columns="label")

    assert [f.column for f in run(logged).failures] == ["label", "heat", "level"]
    assert run(logged, label=False, tolerances=replace(TOLERANCES, mostly=0.98)).passed


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"min": "0", "max": "5", "nullable": "true"}, "heat: 33 rows are not from 0 to 5"),
        ({"min": "5", "max": "10", "nullable": "true"}, "heat: 33 rows are not from 5 to 10"),
        ({"max": "5", "nullable": "true"}, "heat: 33 rows are not to 5"),
        ({"min": "0", "max": "10"}, "heat: 100 rows are null (at least 80 % must be known)"),
    ],
)
def test_one_changed_tag_changes_the_suite(tags: dict[str, str], said: str, frame: pd.DataFrame, run: Run) -> None:
    (failure,) = run(frame, plant(tags=tags)).failures

    assert str(failure).startswith(said)


def test_data_docs_hold_every_expectation_and_load_nothing(frame: pd.DataFrame, run: Run) -> None:
    found = run(put("kind", "<img src=x>", *range(30))(put("hits", 7.5, 7)(frame)), baseline=BASELINE)

    page = found.docs.read_text()

    assert "toy: 2 of" in page
    for column in (*plant().features, "request_id", "event_timestamp", "label"):
        assert re.search(rf'<a href="#section-\d+">{column}</a>', page)
    for text in (
        "values must be whole numbers",
        "values must be unique",
        "mean must be",
        "r007",
        "30 unexpected values",
    ):
        assert text in page
    assert "&lt;img src=x&gt;" in page
    assert re.findall(r"<img|<script|<link|https?:|url\(|@import|<\w[^>]*\b(?:src|href)=[\"']?[^\"'#\s]", page) == []
    assert [path.name for path in found.docs.parent.iterdir()] == ["index.html"]


def test_the_page_of_a_frame_that_passed_shows_no_faults(frame: pd.DataFrame, run: Run) -> None:
    page = run(frame, baseline=BASELINE).docs.read_text()

    assert "toy: 0 of" in page
    assert f"{frame['level'].mean():.2f}" in page
    assert "Unexpected Values" not in page


def test_a_validation_makes_no_other_file_and_no_noise(
    frame: pd.DataFrame,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_: pytest.fail("a temporary folder was made"))
    monkeypatch.chdir(tmp_path)

    run(put("heat", 11.0, 5)(frame), baseline=BASELINE)

    assert list(tmp_path.rglob("*")) == []
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


def test_bands_come_from_the_seated_primary_or_not_at_all(tmp_path: Path) -> None:
    contract = plant()
    full = {"features": {name: {"null_rate": 0.0} for name in contract.features}}
    assert seated_baseline(tmp_path, contract) is None

    folder = seat(tmp_path, contract, full)
    assert seated_baseline(tmp_path, contract) == full
    (folder / "baseline.json").write_text("{}")
    assert seated_baseline(tmp_path, contract) is None
    seat(tmp_path, contract, BASELINE)
    assert seated_baseline(tmp_path, contract) is None


def seat(models_dir: Path, contract: Contract, baseline: dict[str, Any]) -> Path:
    """Seat a toy model with a baseline as primary."""
    x = np.random.default_rng(1).random((100, len(contract.features)))
    trained = FITTERS["lightgbm"](TOYS["lightgbm"], x, (x[:, 0] > 0.5).astype(float), [], 1)
    signature = Signature(
        trained.format, contract.name, contract.digest, contract.features, {}, "probability", 0.5
    )  # fmt: skip
    digest, folder = save_package(models_dir, trained.content, signature, baseline, {}, contract.record(), SAMPLE)
    move_roles(
        models_dir,
        read_roles(models_dir).revision,
        {"primary": Seat("1", digest, str(folder.relative_to(models_dir)))},
    )
    return folder


def test_no_serving_process_imports_great_expectations() -> None:
    uses = re.compile(r"^(?:from|import) (?:great_expectations|service\.(?:expectations|data_docs))\b", re.MULTILINE)

    users = {path.stem for path in (ROOT / "service").glob("*.py") if uses.search(path.read_text())}
    callers = {path.stem for path in (ROOT / "service").glob("*.py") if "service.validation" in path.read_text()}

    assert users == {"expectations", "data_docs"}
    assert callers == {"expectations"}
