"""Performance estimated without labels against realized, over real months and three models.

Models are trained as of 1 April, 1 July and 1 October; each is then held against every later month of the year. A
month's estimate is *flagged* when one of two things is so: before its labels, because more requests than usual have
values that the reference sample does not have; or by its labels, because the model is calibrated otherwise in this
month than it was in the reference (intercept and slope, days as units, p < 0.05): concept drift, measured. Flags do not
look at the estimated AUC. Limit: |estimated - realized| <= 0.02 in every month without a flag.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.monitor import answered, joined, save
from feature_repo import features as definitions
from monitoring.calibration import Calibration, changed, fit
from monitoring.estimated import Reference, estimated
from monitoring.realized import realized
from service.contract import Contract
from service.definitions import contracts
from service.progress import Progress
from training.fitting import Fitted, fit_role, known_rows
from training.train import SEED

MOST_OFF, ALPHA, LEAST_ROWS = 0.02, 0.05, 5000
MODELS = (datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 10, 1, tzinfo=UTC))
WEEK = timedelta(days=7)


def main() -> int:
    """Measure, print the table and one JSON line, and return the exit code: 1 when the limit is missed."""
    say = Progress(sys.stderr)
    contract = contracts(definitions)["primary"]
    rows = joined(contract)
    months, weeks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for at in MODELS:
            say(f"fitting as of {at:%d %B}")
            fitted = fit_role("primary", known_rows(rows, at), contract, at, SEED)
            later = rows[rows["event_timestamp"] >= at]
            frame = answered(later, fitted, save(fitted, Path(folder)), contract).assign(label=later["label"])
            months.append(compared(frame, fitted, contract, "M").assign(model=f"{at:%-d %b}"))
            weeks.append(compared(frame, fitted, contract, "W-WED"))
    found, weekly = pd.concat(months, ignore_index=True), pd.concat(weeks, ignore_index=True)
    sys.stderr.write(table(found) + "\n")
    result = summary(found) | of_weeks(weekly)
    passed = result["missed"] == 0
    if not passed:
        sys.stderr.write(f"estimate: {result['missed']} months without a flag are off by more than {MOST_OFF:g}\n")
    sys.stdout.write(json.dumps({**result, "seconds": round(say.seconds, 1), "passed": passed}) + "\n")
    return 0 if passed else 1


def compared(frame: pd.DataFrame, fitted: Fitted, contract: Contract, period: str) -> pd.DataFrame:
    """Estimate and truth of every stretch of time, with its flags.

    Args:
        frame: answers of the model with ``label``, as monitoring reads them.
        period: pandas' name of the stretches.
    """
    sample = pd.read_parquet(io.BytesIO(fitted.reference))
    reference = Reference.of(sample, contract.features, WEEK)
    if not isinstance(reference.calibration, Calibration):
        msg = reference.calibration
        raise TypeError(msg)
    parts = frame.assign(window=frame["at"].dt.tz_localize(None).dt.to_period(period).dt.start_time)
    parts = parts[parts.groupby("window")["window"].transform("size") >= LEAST_ROWS]
    both = estimated(parts, reference).merge(realized(parts, ["window"]), on="window", suffixes=("", "_true"))
    p_values = [_changed(rows, reference.calibration) for _, rows in parts.groupby("window")]
    return pd.DataFrame(
        {
            "from": both["window"], "n": both["labelled"], "estimated": both["auc"], "low": both["auc_low"],
            "high": both["auc_high"], "realized": both["auc_true"], "off": both["auc"] - both["auc_true"],
            "outside": both["outside"], "p": p_values, "unlike": ~both["trusted"].astype(bool),
            "changed": np.asarray(p_values) < ALPHA,
        }
    )  # fmt: skip


def _changed(rows: pd.DataFrame, calibration: Calibration) -> float:
    known = rows[rows["label"].notna()]
    days = (known["at"].dt.as_unit("us").astype("int64") // 86_400_000_000).to_numpy()
    labels, scores = (known[name].to_numpy(dtype=np.float64) for name in ("label", "prediction"))
    found = changed(calibration, fit(labels, scores, days))
    return 1.0 if found is None else found


def summary(found: pd.DataFrame) -> dict[str, Any]:
    """The result over months."""
    flagged = found["unlike"] | found["changed"]
    off = found["off"].abs()
    return {
        "windows": len(found), "unflagged": int((~flagged).sum()),
        "worst_unflagged_abs_auc": round(float(off[~flagged].max()), 4), "flagged": int(flagged.sum()),
        "missed": int((off[~flagged] > MOST_OFF).sum()), "flagged_before_labels": int(found["unlike"].sum()),
        "worst_abs_auc": round(float(off.max()), 4), "off_by_more": int((off > MOST_OFF).sum()),
        "inside_interval": round(float(found["realized"].between(found["low"], found["high"]).mean()), 3),
    }  # fmt: skip


def of_weeks(found: pd.DataFrame) -> dict[str, Any]:
    """The same for weeks, which stray too much by themselves for a limit of 0.02."""
    return {
        "weeks": len(found), "weeks_mean_abs_auc": round(float(found["off"].abs().mean()), 4),
        "weeks_inside_interval": round(float(found["realized"].between(found["low"], found["high"]).mean()), 3),
    }  # fmt: skip


def table(found: pd.DataFrame) -> str:
    """Every month on a line."""
    lines = ["", "  model   month         n  estimated  realized      off  outside      p  flagged"]
    for row in found.itertuples():
        why = ", ".join(
            text
            for text, is_so in (("unlike the reference", row.unlike), ("calibration changed", row.changed))
            if is_so
        )
        lines.append(
            f"  {row.model:<7} {row._1:%b}   {row.n:>9,} {row.estimated:>10.4f} {row.realized:>9.4f} {row.off:>+8.4f} "
            f"{row.outside:>8.1%} {row.p:>6.3f}  {why}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
