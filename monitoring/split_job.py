"""Judges the newest split from the logs: ``python -m monitoring.split_job``.

Prints a summary for people and, as the last line, one JSON object: ``verdict, reasons, split, share, drawn, counted,
difference, low, high, gain, report``. Any verdict exits 0; without a split it exits 1 and says what to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring import export
from monitoring.maturity import matures
from monitoring.split import evidence
from monitoring.split_evidence import SplitEvidence
from monitoring.split_report import headline, summary, write_report
from monitoring.split_units import Question
from monitoring.split_values import from_file, from_labels, read_values
from monitoring.split_verdict import decide
from monitoring.verdict import Verdict
from service.clock import clock_from
from service.contract import Contract
from service.errors import DataError, NotReady, UnderstudyError
from service.settings import settings
from service.split import Goal, Split
from service.split_file import SplitMove, read_split_history


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UnderstudyError as error:
        sys.stderr.write(f"split-verdict: {error}\n")
        return 1
    return 0


def gather(
    log_dir: Path,
    models_dir: Path,
    contract: Contract,
    now: datetime,
    *,
    name: str = "",
    metric: str = "",
    goal: Goal | None = None,
    file: Path | None = None,
    maturity: timedelta,
) -> SplitEvidence:
    """Read the logs and gather what a split found.

    Args:
        name: of the split; empty: the newest.
        metric, goal: other than declared, to explore.
        file: outcomes; needed for every metric but ``label``.
        maturity: age at which an outcome should have come.

    Raises:
        NotReady: when there is no such split, or it has no answers yet.
        DataError: when the outcomes cannot be read.
    """
    split, ended = _declared(read_split_history(models_dir), name)
    metric = metric or split.metric
    if metric != "label" and file is None:
        msg = f"the outcome {metric!r} is not in the logs; give FILE= with request_id,value,at"
        raise DataError(msg)
    read = export.predictions(log_dir, contract)
    answers = read.frame[read.frame["at"] >= split.opened]
    first = answers.drop_duplicates("request_id", keep="first")
    rows = first[first["split"].eq(split.name)].reset_index(drop=True)
    if rows.empty:
        msg = f"no answer in {log_dir} belongs to the split {split.name}; is the service running, on this clock?"
        raise NotReady(msg)
    if file is None:
        labels = export.labels(log_dir)
        rows["value"], found = from_labels(rows, labels.frame, maturity)
        damaged = labels.damaged_lines
    else:
        rows["value"], found = from_file(rows, read_values(file), maturity)
        damaged = 0
    notes: dict[str, Any] = {
        "damaged_lines": read.damaged_lines + damaged,
        "duplicates": len(answers) - len(first),
        "keyless": _keyless(first, split, rows),
        "values": found,
    }
    asked = Question(metric, goal or split.goal, maturity, now, ended)
    return evidence(rows, split, asked, contract=contract.digest, notes=notes)


def _declared(history: Sequence[SplitMove], name: str) -> tuple[Split, datetime | None]:
    """The split of a name (empty: the newest) as its history has it, and when it ended."""
    named = [move for move in history if move.after is not None and name in ("", move.after.name)]
    if not named:
        had = ", ".join(dict.fromkeys(m.after.name for m in history if m.after)) or "none"
        msg = (
            f"there is no split {name!r}; there was: {had}" if name else "there was no split; run `make split SHARE=1`"
        )
        raise NotReady(msg)
    last = named[-1]
    assert last.after is not None
    over = [move.at for move in history if move.revision > last.revision]
    return last.after, over[0] if over else None


def _keyless(answers: pd.DataFrame, split: Split, rows: pd.DataFrame) -> int:
    if not split.key:
        return 0
    during = answers["at"].between(rows["at"].min(), rows["at"].max())
    return int((during & answers["arm"].isna()).sum())


def _run(options: argparse.Namespace) -> None:
    # Reading the definitions imports Feast, which takes seconds: not before the arguments are known to be good.
    maturity = matures(options.maturity, settings().label_maturity_h)
    from feature_repo import features
    from service.definitions import contracts

    found = gather(
        options.logs or settings().log_dir, settings().models_dir, contracts(features)["primary"],
        clock_from(settings().clock).now(), name=options.split, metric=options.metric, goal=options.goal or None,
        file=options.file, maturity=maturity,
    )  # fmt: skip
    verdict = decide(found)
    page = write_report(verdict, found, options.out or settings().state_dir / "reports")
    sys.stdout.write(summary(verdict, found))
    sys.stdout.write(f"  report: {page}\n\n{_last_line(verdict, found, page)}\n")


def _last_line(verdict: Verdict, found: SplitEvidence, page: Path) -> str:
    return json.dumps(
        {
            "verdict": verdict.decision,
            "reasons": [reason.message for reason in verdict.deciding],
            "headline": headline(verdict, found),
            "split": found.split.name,
            "share": found.split.share,
            "drawn": found.drawn,
            "counted": found.counted,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "gain": found.gain,
            "report": str(page),
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="split-verdict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--split", default="", help="name of the split (default: the newest)")
    parser.add_argument("--metric", default="", help="label, or the name of the values in --file (default: declared)")
    parser.add_argument(
        "--goal", default="", choices=("", "higher", "lower"), help="what is better (default: declared)"
    )
    parser.add_argument("--file", type=Path, help="outcomes: request_id,value,at as CSV, JSON lines or Parquet")
    parser.add_argument("--maturity", help="age at which an outcome should have come, as 36h (default: the setting)")
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the reports (default: reports/ in the state folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
