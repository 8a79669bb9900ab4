"""Evidently's own report beside ours: the last stretch against the training sample, by KS and chi-square.

It tests rows as if they were independent, so it finds drift nearly always; it is there for its pictures.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from monitoring.drift_report import load_evidently, run_report
from monitoring.drift_yardstick import SCORE, Yardstick
from monitoring.report import write

PAGE, DATA = "evidently_monitor.html", "evidently_monitor.json"
MOST_ROWS, ALPHA = 5_000, 0.01
_LEAST_ROWS = 50


def write_evidently(yardstick: Yardstick, rows: pd.DataFrame, out: Path) -> tuple[str, ...]:
    """Write page and JSON below ``out``; return remarks. A report that cannot be made is not left over.

    Args:
        rows: the requests of the last stretch, as in the prediction log.
    """
    categories = [name for name in yardstick.columns if name in yardstick.signature.categories]
    numbers = [name for name in yardstick.columns if name not in categories]
    current = rows.rename(columns=lambda name: name.removeprefix("vector."))
    current = current.loc[:, ~current.columns.duplicated()].reindex(columns=[*numbers, *categories])
    sides = [yardstick.sample, current]
    # evidently 0.7 raises on a column without a value.
    empty = [name for name in (*numbers, *categories) if any(side[name].notna().sum() < 2 for side in sides)]
    numbers, categories = ([n for n in names if n not in empty] for names in (numbers, categories))
    if min(len(side) for side in sides) < _LEAST_ROWS or not numbers + categories:
        for name in (PAGE, DATA):
            (out / name).unlink(missing_ok=True)
        return (f"no Evidently report: {len(current)} requests, needs {_LEAST_ROWS}",)
    evidently = load_evidently()
    from evidently.presets import DataDriftPreset

    definition = evidently.DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    reference, now = (
        evidently.Dataset.from_pandas(_plain(side, numbers, categories), data_definition=definition) for side in sides
    )
    preset = DataDriftPreset(num_method="ks", cat_method="chisquare", num_threshold=ALPHA, cat_threshold=ALPHA)
    snapshot = run_report([preset], now, reference)
    snapshot.save_html(str(out / PAGE))
    write(out / DATA, snapshot.json() + "\n")
    return tuple(
        f"{name} is not in the Evidently report: it has no value on one side" for name in empty if name != SCORE
    )


def _plain(side: pd.DataFrame, numbers: list[str], categories: list[str]) -> pd.DataFrame:
    kept = side[[*numbers, *categories]]
    kept = kept if len(kept) <= MOST_ROWS else kept.sample(MOST_ROWS, random_state=0).sort_index()
    # Evidently 0.7 knows neither pandas' Int64 nor None beside strings.
    return kept.astype(dict.fromkeys(numbers, "float64")).reset_index(drop=True)
