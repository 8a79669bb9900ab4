"""The Evidently reports beside our page: has the traffic moved during the campaign, and how do both roles classify.

Comparing the shadow's inputs with the primary's would compare a frame with itself: both got the same vectors. So
drift is asked of the first against the second half of the campaign, for vectors and both scores, and quality of
the primary (reference) against the shadow (current) where labels are known.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring.campaign import is_scored, newest_campaign
from monitoring.report import Companions, write
from service.contract import Contract

# Evidently's statistics and its page grow with the rows; more change neither answer.
MOST_ROWS = 20_000
_LEAST_ROWS = 50
DRIFT, QUALITY = "evidently_drift.html", "evidently_quality.html"
TESTS = "evidently_drift.json"
_SCORES = ("prediction", "shadow_prediction")


@dataclass(frozen=True)
class Halves:
    """Vectors and scores of the earlier and the later half of a campaign, and the columns left out of both."""

    first: pd.DataFrame
    second: pd.DataFrame
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    left_out: tuple[str, ...]


def write_drift_reports(frame: pd.DataFrame, contract: Contract, out: Path) -> Companions:
    """Write what the data allows below ``out``; a report that cannot be made is not left over from an earlier run.

    Args:
        frame: the paired frame (see :func:`monitoring.pairing.paired`).
    """
    campaign = newest_campaign(frame).frame
    both = campaign[campaign["role"].eq("primary") & is_scored(campaign)]
    out.mkdir(parents=True, exist_ok=True)
    pages, remarks = [], []
    halves = split_halves(both, contract)
    if halves is None:
        for name in (DRIFT, TESTS):
            (out / name).unlink(missing_ok=True)
        remarks.append(f"no Evidently drift report: {len(both)} scored pairs, needs {2 * _LEAST_ROWS}")
    else:
        found = _drift(halves)
        found.save_html(str(out / DRIFT))
        write(out / TESTS, found.json() + "\n")
        pages.append((DRIFT, "Evidently: drift from the first to the second half"))
        remarks.append(tests_in_words(json.loads(found.json())["tests"]))
        remarks += [
            f"{name} is not in the Evidently drift report: it has no value in one half" for name in halves.left_out
        ]
    labelled = both[both["label"].notna()]
    if len(labelled) < _LEAST_ROWS or labelled["label"].nunique() < 2:
        (out / QUALITY).unlink(missing_ok=True)
        remarks.append(f"no Evidently quality report: needs {_LEAST_ROWS} labelled pairs of both classes")
    else:
        _quality(_thinned(labelled)).save_html(str(out / QUALITY))
        pages.append((QUALITY, "Evidently: classification quality of both roles"))
    return Companions(tuple(pages), tuple(remarks))


def tests_in_words(tests: list[dict[str, Any]]) -> str:
    """Say which columns failed their own drift test; the report's test on the share of columns is not one."""
    own = [t for t in tests if t["metric_config"]["params"]["type"].endswith("ValueDrift")]
    failed = sorted(str(t["metric_config"]["params"]["column"]) for t in own if t["status"] != "SUCCESS")
    names = f": {', '.join(failed)}" if failed else ""
    return f"Evidently's tests: {len(failed)} of {len(own)} columns moved from the first to the second half{names}"


def split_halves(both: pd.DataFrame, contract: Contract) -> Halves | None:
    """Split scored rows in time; a column without a value in one half is left out and named.

    Returns:
        None with too few rows in a half to test anything.
    """
    middle = len(both) // 2
    if middle < _LEAST_ROWS:
        return None
    names = {f"vector.{spec.name}": spec.name for spec in contract.fields}
    values = both.sort_values("at", kind="stable")[[*names, *_SCORES]]
    values = values.rename(columns={**names, "prediction": "primary score", "shadow_prediction": "shadow score"})
    categories = list(contract.categories)
    numbers = [name for name in values.columns if name not in categories]
    # Evidently 0.7 knows neither pandas' Int64 nor None beside strings.
    values = values.astype(dict.fromkeys(numbers, "float64"))
    first, second = values.iloc[:middle], values.iloc[middle:]
    empty = [name for name in values.columns if first[name].isna().all() or second[name].isna().all()]
    return Halves(
        _thinned(first.drop(columns=empty)),
        _thinned(second.drop(columns=empty)),
        tuple(name for name in numbers if name not in empty),
        tuple(name for name in categories if name not in empty),
        tuple(empty),
    )


def _drift(halves: Halves) -> Any:
    evidently = load_evidently()
    definition = evidently.DataDefinition(
        numerical_columns=list(halves.numbers), categorical_columns=list(halves.categories)
    )
    current, reference = (
        evidently.Dataset.from_pandas(half.reset_index(drop=True), data_definition=definition)
        for half in (halves.second, halves.first)
    )
    from evidently.presets import DataDriftPreset

    # Effect sizes, not p-values: with thousands of rows KS finds shifts too small to matter, and evidently 0.7's
    # chi-square takes the reference for the exact truth.
    preset = DataDriftPreset(num_method="wasserstein", cat_method="jensenshannon")
    return run_report([preset], current, reference, tests=True)


def _quality(labelled: pd.DataFrame) -> Any:
    evidently = load_evidently()
    definition = evidently.DataDefinition(
        classification=[evidently.BinaryClassification(target="label", prediction_probas="score", pos_label=1)],
        numerical_columns=["score"],
    )
    current, reference = (
        evidently.Dataset.from_pandas(
            pd.DataFrame({"label": labelled["label"].astype("int64"), "score": labelled[score]}),
            data_definition=definition,
        )
        for score in ("shadow_prediction", "prediction")
    )
    from evidently.presets import ClassificationPreset

    return run_report([ClassificationPreset()], current, reference)


def load_evidently() -> Any:
    """Import Evidently (5 s) with its telemetry off."""
    os.environ["DO_NOT_TRACK"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing evidently 0.7.23 raises its dependencies' deprecations
        import evidently

    return evidently


def run_report(metrics: list[Any], current: Any, reference: Any, *, tests: bool = False) -> Any:
    """Run Evidently over two data sets, with its tests or without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's remarks on constant columns
        return load_evidently().Report(metrics, include_tests=tests).run(current, reference)


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if len(rows) <= MOST_ROWS else rows.sample(MOST_ROWS, random_state=0).sort_index()
