"""Takes ground truth from a file into the label log, or to a running service: ``make labels FILE=...``.

A file may be given again: what is known already is not written twice. Without a file it only says how much of the
truth is there. Last line: one JSON object. Exit code 0: done, with whatever lines were set aside; 1: nothing was
written with ``--strict`` and lines to set aside, or lines could not be kept; 2: the file or the logs cannot be used.
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

from monitoring import export, labels_log, labels_send
from monitoring.labels import resolve
from monitoring.labels_file import read_labels
from monitoring.labels_series import write_series
from monitoring.labels_sort import IN_WORDS, Sorted, sort_labels
from monitoring.maturity import Maturity, maturity
from service.clock import clock_from
from service.errors import UnderstudyError
from service.progress import Progress, Say
from service.roles import locked
from service.settings import Settings, settings

_DAYS = 14


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    options = _parser().parse_args(arguments)
    say = Progress(sys.stderr)
    try:
        folder = settings().state_dir / "monitoring"
        folder.mkdir(parents=True, exist_ok=True)
        # Two at once would each write what the other just wrote.
        with locked(folder / ".labels.lock"):
            return _run(options, folder, say)
    except (UnderstudyError, OSError) as error:
        sys.stderr.write(f"labels: {error}\n")
        return 2


def _run(options: argparse.Namespace, folder: Path, say: Say) -> int:
    own = settings()
    log_dir: Path = options.logs or own.log_dir
    now = clock_from(own.clock).now()
    predictions = labels_log.asked(log_dir)
    say(f"read {len(predictions):,} predictions")
    known = export.labels(log_dir).frame
    lines = read_labels(options.file, now) if options.file else None
    found, kept, refused = None, 0, False
    if lines is not None:
        say(f"read {len(lines):,} labels from {options.file}")
        # A caller of a service elsewhere has no log to look requests up in.
        at_hand = None if options.url and predictions.empty else predictions
        found = sort_labels(lines, known, at_hand, now)
        refused = options.strict and bool(found.faults)
        if not refused:
            kept = _deliver(found.wanted, options.url, log_dir, own, now, say)
            known = export.labels(log_dir).frame
    truth, notes = resolve(known, predictions)
    state = maturity(predictions, truth, notes, now, timedelta(hours=own.label_maturity_h), own.label_complete)
    orphans = found.faults.get("orphan", 0) if found else 0
    write_series(folder, state, orphans)
    sys.stdout.write(summary(found, state, refused))
    sys.stdout.write(json.dumps(last_line(found, state, kept, refused, sent=bool(options.url))) + "\n")
    lost = 0 if found is None or refused else len(found.wanted) - kept
    if lost:
        sys.stderr.write(f"labels: {lost:,} labels could not be kept; give the file again when there is room\n")
    return 1 if refused or lost else 0


def _deliver(wanted: pd.DataFrame, url: str, log_dir: Path, own: Settings, now: datetime, say: Say) -> int:
    if url:
        return labels_send.send(
            wanted, url, own.predict_token.get_secret_value().partition(",")[0], own.batch_limit, say
        )
    return labels_log.write(wanted, log_dir, own.segment_bytes, now, say)


def summary(found: Sorted | None, state: Maturity, refused: bool) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    out = [""]
    if found is not None:
        for kind, n in found.counts.items():
            shown = "" if kind not in found.faults else ": " + ", ".join(found.examples(kind))
            out.append(f"  {n:>9,}  {IN_WORDS[kind]}{shown}")
        if refused:
            out += ["", "  --strict: nothing was written"]
    share = "none" if state.coverage is None else f"{state.coverage:.1%}"
    mature = "none" if state.mature_coverage is None else f"{state.mature_coverage:.1%}"
    out += [
        "",
        f"  {state.labelled:,} of {state.predictions:,} predictions have labels ({share}); old enough: {mature}",
    ]
    if state.watermark:
        out.append(f"  complete until {state.watermark:%Y-%m-%d %H:%M}")
    if state.lag is not None:
        out.append(f"  {state.lag / 3600:.1f} hours from prediction to truth (median)")
    for day, predictions, labelled in state.days.tail(_DAYS).itertuples(index=False):
        out.append(f"    {day:%Y-%m-%d} {labelled:>9,} of {predictions:>9,}  {labelled / predictions:>6.1%}")
    return "\n".join(out) + "\n\n"


def last_line(found: Sorted | None, state: Maturity, kept: int, refused: bool, *, sent: bool = False) -> dict[str, Any]:
    """The result for machines; ``read = written + already + orphan + early + refused`` unless lines were lost."""
    counts = found.counts if found else {}
    new = sum(counts.get(kind, 0) for kind in ("new", "corrected"))
    bad = ("request_id", "label", "at", "future", "contradictory")
    return {
        "read": len(found.lines) if found else 0,
        "written": kept,
        "corrected": 0 if refused else counts.get("corrected", 0),
        "already": counts.get("already", 0) + counts.get("repeated", 0),
        "orphan": counts.get("orphan", 0),
        "early": counts.get("early", 0),
        "refused": sum(counts.get(kind, 0) for kind in bad) + (new if refused else 0),
        "coverage": _rounded(state.coverage),
        "mature_coverage": _rounded(state.mature_coverage),
        "watermark": state.watermark.isoformat() if state.watermark else None,
        "kinds": counts,
        "to": "service" if sent else "log",
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make labels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--file", type=Path, help="CSV, JSON lines or Parquet: request_id, label, and at when it differs"
    )
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--url", default="", help="send them to the service there instead of writing the log")
    parser.add_argument("--strict", action="store_true", help="write nothing when any line has to be set aside")
    return parser


if __name__ == "__main__":
    sys.exit(main())
