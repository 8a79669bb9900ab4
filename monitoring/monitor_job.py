"""Drift and silent degradation from the prediction log: ``make monitor``, to be run on a schedule.

Judges every window of the clock that is over and has no result yet, writes ``windows.jsonl`` and ``monitor.prom`` below
the state's ``monitoring/`` and a page below ``reports/``. Last line: one JSON object. Exit code 0: done, whatever was
found; 1: windows of some model could not be judged (they are tried again next time); 2: nothing could be done;
3: only with ``--fail-on-alarm``, the newest window has alarms.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring import export, labels_series
from monitoring.drift_judge import SPAN, Rules
from monitoring.drift_page import Facts, write_page
from monitoring.drift_run import Run, read_business, run
from monitoring.drift_schema import every_field
from monitoring.drift_series import write_series
from monitoring.drift_store import of_length, read_windows, write_windows
from monitoring.labels import resolve
from monitoring.maturity import maturity
from monitoring.performance_page import Told
from monitoring.performance_run import SPANS, measure
from monitoring.performance_store import (
    merged,
    newest,
    read_stretches,
    write_stretches,
)
from monitoring.performance_store import (
    write_series as write_performance,
)
from monitoring.windows import Cut, Plan, cut
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import NotReady, UnderstudyError
from service.progress import Progress
from service.roles import locked
from service.settings import Settings, settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    options = _parser().parse_args(arguments)
    say = Progress(sys.stderr)
    try:
        folder = settings().state_dir / "monitoring"
        folder.mkdir(parents=True, exist_ok=True)
        # Two jobs at once would each forget what the other found.
        with locked(folder / ".monitor.lock"):
            found, facts, page = _monitor(options, folder, say)
    except (UnderstudyError, OSError) as error:
        sys.stderr.write(f"monitor: {error}\n")
        return 2
    sys.stdout.write(summary(found, facts))
    seconds = say.seconds
    sys.stdout.write(f"  report: {page}\n\n{json.dumps(last_line(found, facts, page, seconds))}\n")
    for failure in found.failures:
        sys.stderr.write(f"monitor: {failure}\n")
    if found.failures:
        return 1
    return 3 if options.fail_on_alarm and facts.standing else 0


def summary(found: Run, facts: Facts) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    judged = [window for window in found.windows if window.status == "judged"]
    newest = f"newest {judged[-1].start:%Y-%m-%d %H:%M}" if judged else "none judged"
    lines = ["", f"  {found.fresh} windows judged now, {len(found.windows)} known, {newest}"]
    if facts.standing:
        lines += ["", "  alarms in the newest window:", *(f"    {e.name:<34} {e.text}" for e in facts.standing)]
    elif judged:
        lines.append("  no alarm in the newest window")
    past = [episode for episode in facts.episodes if not episode.standing][:8]
    lines += ["", "  last of the earlier ones:"] if past else []
    lines += [f"    {e.first:%Y-%m-%d} {e.windows:>3} windows  {e.name}" for e in past]
    lines += [f"  note: {note}" for note in facts.notes]
    return "\n".join(lines) + "\n"


def last_line(found: Run, facts: Facts, page: Path, seconds: float) -> dict[str, Any]:
    """The result for machines."""
    return {
        "rows": facts.rows,
        "seconds": round(seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "alarms": found.alarms,
        "standing": [episode.name for episode in facts.standing],
        "windows": len(found.windows),
        "judged_now": found.fresh,
        "no_data": sum(window.status == "no data" for window in found.windows),
        **_quality(facts.performance),
        "report": str(page),
    }


def _quality(told: Told) -> dict[str, Any]:
    truth = newest(told.stretches, SPANS[-1], truth=True)
    guess = newest(told.stretches, SPANS[-1], truth=False)
    return {
        "realized_auc": _rounded(truth.realized.get("auc") if truth else None),
        "estimated_auc": _rounded(guess.estimated.get("auc") if guess else None),
        "concept_drift": told.drifted is not None,
    }


def _rounded(value: tuple[float, float | None, float | None] | None) -> float | None:
    return None if value is None else round(value[0], 4)


def _monitor(options: argparse.Namespace, folder: Path, say: Any) -> tuple[Run, Facts, Path]:
    # Reading the definitions imports Feast, which takes seconds: not before the arguments are known to be good.
    from feature_repo import features
    from service.definitions import contracts

    own = settings()
    length = duration(options.window or own.monitor_window, "--window")
    if length <= timedelta(0):
        msg = f"--window {length} is no length of time; write 1d or 6h"
        raise NotReady(msg)
    now = clock_from(own.clock).now()
    plan = Plan(length, now, timedelta(days=options.days))
    rules = Rules(options.least_rows, own.latency_sla_ms or own.deadline_ms)
    contract, notes = every_field(contracts(features)["primary"], own.models_dir)
    stored = read_windows(folder)
    try:
        business = read_business(options.business, plan) if options.business else {}
    except ValueError as error:
        msg = f"--business: {error}"
        raise NotReady(msg) from None
    log = export.predictions(options.logs or own.log_dir, contract)
    if log.frame.empty and not stored.windows:
        msg = f"no predictions in {options.logs or own.log_dir}; run `make serve` and `make replay` first"
        raise NotReady(msg)
    say(f"read {len(log.frame):,} predictions")
    rows, damaged = len(log.frame), log.damaged_lines
    asked = log.frame[["request_id", "at"]].copy()
    pieces = cut(log.frame, plan)
    # A year of records is 0.4 GB, and the pieces have a copy of their own.
    del log
    found = run(pieces, stored.windows, own.models_dir, plan, rules, options.again, business, say)
    mine = {window.key for window in of_length(stored.windows, length)}
    others = [window for window in stored.windows if window.key not in mine]
    write_windows(folder, (*others, *found.windows))
    write_series(folder, found.windows, now)
    out: Path = options.out or own.state_dir / "reports"
    out.mkdir(parents=True, exist_ok=True)
    remarks = [*notes, *_notes(pieces, damaged, stored.damaged_lines, found)]
    evidently = _evidently(pieces, found, out, options.evidently, remarks, say)
    told = _performance(pieces, asked, contract, options.logs or own.log_dir, own, plan, folder, remarks, say)
    facts = Facts.of(found, plan, rows, tuple(remarks), evidently, rules.agreed_ms, told)
    return found, facts, write_page(facts, out)


def _performance(
    pieces: Cut, asked: pd.DataFrame, contract: Contract, log_dir: Path, own: Settings, plan: Plan, folder: Path,
    remarks: list[str], say: Any,
) -> Told:  # fmt: skip
    """Measure performance, write its files, and return what the page says of it."""
    before, torn = read_stretches(folder)
    before = tuple(s for s in before if s.length == s.span * plan.length)
    remarks += [f"{torn:,} damaged lines in performance.jsonl, left out"] if torn else []
    asked = asked[["request_id", "at"]].drop_duplicates("request_id")
    lines = export.labels(log_dir)
    remarks += [f"{lines.damaged_lines:,} damaged lines in the label log, left out"] if lines.damaged_lines else []
    truth, notes = resolve(lines.frame, asked)
    state = maturity(asked, truth, notes, plan.now, timedelta(hours=own.label_maturity_h), own.label_complete)
    labels_series.write_series(folder, state)
    say(f"performance: {state.labelled:,} labels")
    slices = tuple(f"vector.{name}" if name in contract.features else f"request.{name}" for name in contract.slices)
    found = measure(pieces.frame, truth, own.models_dir, plan, own.label_complete, slices)
    remarks += found.notes
    stretches = merged(before, found.stretches)
    write_stretches(folder, stretches)
    write_performance(folder, stretches)
    return Told(stretches, found.slices, state, notes)


def _evidently(pieces: Cut, found: Run, out: Path, wanted: bool, remarks: list[str], say: Any) -> bool:
    """Whether Evidently's page stands beside ours; it is made anew when there are new windows."""
    from monitoring.drift_evidently import PAGE, write_evidently

    if not wanted or found.latest is None or not found.fresh:
        return (out / PAGE).exists()
    frame = pieces.frame
    last = frame[(frame["window"] > frame["window"].max() - SPAN) & frame["model"].eq(found.latest.digest)]
    say(f"Evidently over {len(last):,} predictions")
    remarks += write_evidently(found.latest, last, out)
    return (out / PAGE).exists()


def _notes(pieces: Cut, damaged: int, torn: int, found: Run) -> list[str]:
    counted = [
        (damaged, "damaged lines in the log, left out"),
        (torn, "damaged lines in windows.jsonl, left out; their windows were judged again if the log still has them"),
        (pieces.future, "predictions dated in the future, set aside: a clock is ahead"),
        (pieces.past, "predictions older than --days, set aside"),
        (pieces.repeated, "predictions repeating a request id, left out"),
        (pieces.running, "predictions in a window that is not over, judged later"),
        (found.late, "predictions arrived after their window was judged; --again judges it anew"),
    ]
    return [f"{n:,} {what}" for n, what in counted if n] + [*found.failures, *found.gaps]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make monitor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the page (default: reports/ in the state folder)")
    parser.add_argument("--window", help="length of a window: 1d, 6h (default: UNDERSTUDY_MONITOR_WINDOW)")
    parser.add_argument("--days", type=float, default=400, help="older records are set aside (default 400)")
    parser.add_argument("--least-rows", type=int, default=100, help="fewer requests in a window are no data")
    parser.add_argument("--again", action="store_true", help="judge windows anew whose records are in the log")
    parser.add_argument("--business", type=Path, help="CSV file with the columns at, value: a figure to watch")
    parser.add_argument("--fail-on-alarm", action="store_true", help="exit 3 when the newest window has alarms")
    parser.add_argument("--no-evidently", dest="evidently", action="store_false", help="leave out Evidently's report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
