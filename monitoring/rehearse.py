"""Scores logged vectors with a model that came late: ``python -m monitoring.rehearse --version 7`` (`make rehearse`).

The records go below ``<state>/rehearsals/``, never into the live logs, and are compared with the primary's answers by
the same machinery as a live shadow's. What comes out is offline evidence: at best `hold`, with what it would have been.

Prints a summary for people and, as the last line, one JSON object: ``verdict, would_be, offline, version, replayed,
scored, dropped, trained_on, redacted, already, reproduced, report``. Exits 1, and leaves everything as it was, when the
version is unknown, its package cannot be trusted, or no row is left to ask it about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from monitoring import export
from monitoring.compare import Options, compare
from monitoring.compare_job import summary
from monitoring.criteria import declared_criteria
from monitoring.evidence import Evidence
from monitoring.export import Export
from monitoring.floor import AGAIN
from monitoring.maturity import matures
from monitoring.offline import Rehearsal
from monitoring.pairing import Paired, paired
from monitoring.redacted import removed
from monitoring.registered import Registered, registered
from monitoring.rehearsal import Store, marks, rehearse
from monitoring.report import write_report
from monitoring.verdict import decide
from service.clock import clock_from, parse_instant
from service.contract import Contract, duration
from service.errors import DataError, UnderstudyError
from service.settings import Settings, settings

# Floats are logged in full; only another machine's rounding remains.
_SAME = 1e-9


@dataclass(frozen=True)
class Chosen:
    """The rows of the log a model may be asked about, and how many were left out and why.

    Attributes:
        frame: one row per request.
        marked: same rows, one column of bool per mark.
        aside: requests that are logged and were left out.
    """

    frame: pd.DataFrame
    marked: pd.DataFrame
    aside: frozenset[str]
    logged: int
    trained_on: int
    redacted: int
    damaged_lines: int
    duplicates: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rehearsal and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options, settings())
    except UnderstudyError as error:
        sys.stderr.write(f"rehearse: {error}\n")
        return 1
    return 0


def choose(
    log_dir: Path, contract: Contract, found: Registered, start: datetime | None = None, end: datetime | None = None
) -> Chosen:
    """Pick the logged predictions a model may be asked about.

    Raises:
        DataError: when the log lacks a feature the model takes, or no row is left.
    """
    takes = found.model.signature.features
    lacking = [name for name in takes if name not in contract.features]
    if lacking:
        msg = (
            f"version {found.seat.version} takes {', '.join(lacking)}, which the log of feature service "
            f"{contract.name} does not hold; seat it as a shadow instead: rehearsals need its inputs logged"
        )
        raise DataError(msg)
    log = export.predictions(log_dir, contract)
    every = log.frame.drop_duplicates("request_id", keep="first")
    duplicates = len(log.frame) - len(every)
    inside = pd.Series(True, index=every.index)
    if start is not None:
        inside &= every["at"] >= start
    if end is not None:
        inside &= every["at"] < end
    frame = every[inside]
    trained_on = frame["at"] < found.as_of
    kept = frame[~trained_on]
    gone = pd.DataFrame(removed(kept), index=kept.index, dtype=bool)
    without = gone[[name for name in gone if name in takes]].any(axis=1)
    rows = kept[~without]
    if rows.empty:
        raise DataError(_nothing_left(found, len(frame), int(trained_on.sum()), int(without.sum())))
    marked = marks(rows, contract, takes)
    marked["redacted"] = gone.loc[rows.index].any(axis=1)
    return Chosen(
        frame=rows,
        marked=marked,
        aside=frozenset(every["request_id"]) - frozenset(rows["request_id"]),
        logged=len(frame),
        trained_on=int(trained_on.sum()),
        redacted=int(without.sum()),
        damaged_lines=log.damaged_lines,
        duplicates=duplicates,
    )


def pair(log_dir: Path, chosen: Chosen, store: Store) -> Paired:
    """Join the chosen predictions with the rehearsal's records and the labels."""
    asked = chosen.frame.assign(shadow_sampled=True).astype({"shadow_sampled": "boolean"}).reset_index(drop=True)
    shadow, labels = export.shadow(store.folder), export.labels(log_dir)
    ours = shadow.frame[shadow.frame["request_id"].isin(asked["request_id"])]
    # A label of a request that was left out is no stray one.
    known = labels.frame[~labels.frame["request_id"].isin(chosen.aside)]
    joined = paired(
        Export(asked, chosen.damaged_lines),
        Export(ours, shadow.damaged_lines),
        Export(known, labels.damaged_lines),
    )
    again = joined.frame["request_id"].map(store.scored().set_index("request_id")["primary_again"])
    notes = replace(joined.notes, duplicate_predictions=chosen.duplicates)
    return Paired(joined.frame.assign(**{AGAIN: again.astype("float64")}), notes)


def gather(
    paired_rows: Paired, contract: Contract, chosen: Chosen, found: Registered, already: int, options: Options,
    window: tuple[datetime | None, datetime | None] = (None, None),
) -> Evidence:  # fmt: skip
    """Compare, and mark the evidence as offline."""
    evidence = compare(paired_rows, contract, options)
    twice = paired_rows.frame[paired_rows.frame[AGAIN].notna() & paired_rows.frame["role"].eq("primary")]
    apart = (twice["prediction"] - twice[AGAIN]).abs().to_numpy(dtype=np.float64)
    told = Rehearsal(
        version=found.seat.version,
        digest=found.seat.digest,
        trained_as_of=found.as_of,
        start=window[0],
        end=window[1],
        logged=chosen.logged,
        trained_on=chosen.trained_on,
        redacted=chosen.redacted,
        replayed=len(chosen.frame),
        marks={str(name): int(column.sum()) for name, column in chosen.marked.items()},
        already=already,
        again=len(twice),
        reproduced=int((apart <= _SAME).sum()),
    )
    return replace(evidence, rehearsal=told)


def _run(options: argparse.Namespace, using: Settings) -> None:
    if not options.version:
        msg = "no version was named; name a registered one: `make rehearse VERSION=n`"
        raise DataError(msg)
    window = _instant(options.start, "--start"), _instant(options.end, "--end")
    criteria = declared_criteria(using, duration(options.block, "--block"))
    maturity = matures(options.maturity, using.label_maturity_h)
    # Reading the definitions imports Feast, which takes seconds: not before the arguments are known to be good.
    from feature_repo import features
    from service.definitions import contracts

    contract = contracts(features)["primary"]
    logs: Path = options.logs or using.log_dir
    found = registered(using, options.version)
    chosen = choose(logs, contract, found, *window)
    store = Store.of(using.state_dir, found.model)
    already = _score(found, chosen, store, using)
    asked = Options(maturity=maturity, plan=criteria.plan, now=clock_from(using.clock).now())
    evidence = gather(pair(logs, chosen, store), contract, chosen, found, already, asked, window)
    stem = f"rehearse-{found.seat.version}"
    verdict = decide(evidence, criteria, f"{stem}.html")
    files = write_report(verdict, evidence, options.out or using.state_dir / "reports", stem=stem)
    told = evidence.rehearsal
    assert told is not None
    sys.stdout.write(summary(verdict, evidence))
    sys.stdout.write(f"  records: {store.folder}\n  report: {files.page}\n\n")
    last = {
        "verdict": verdict.decision,
        "would_be": verdict.would_be,
        "offline": True,
        "version": told.version,
        "replayed": told.replayed,
        "scored": evidence.ledger.scored,
        "dropped": sum(evidence.ledger.dropped.values()),
        "trained_on": told.trained_on,
        "redacted": told.redacted,
        "already": told.already,
        "reproduced": told.reproduced,
        "report": str(files.page),
    }
    sys.stdout.write(json.dumps(last) + "\n")


def _score(found: Registered, chosen: Chosen, store: Store, using: Settings) -> int:
    """Score what is missing under a progress bar; returns how many rows had been scored before."""
    steps = rehearse(found.model, chosen.frame, chosen.marked, store, using.models_dir)
    already = next(steps)
    bar = tqdm(total=len(chosen.frame), initial=already, desc=f"version {found.seat.version}", unit="row",
               file=sys.stderr, mininterval=1)  # fmt: skip
    with bar:
        for rows in steps:
            bar.update(rows)
    return already


def _nothing_left(found: Registered, logged: int, trained_on: int, redacted: int) -> str:
    version = found.seat.version
    if not logged:
        return "the log holds no prediction in that stretch of time; serve requests, or name another START and END"
    if trained_on == logged:
        return (
            f"all {logged:,} logged predictions were made before {found.as_of:%Y-%m-%d %H:%M}, the moment version "
            f"{version}'s training stood at: it may know their labels; rehearse it on later ones"
        )
    return (
        f"none of {logged:,} logged predictions can be replayed: {trained_on:,} are from version {version}'s training, "
        f"{redacted:,} lack a value it takes (setting `redact`); let it rehearse on live requests"
    )


def _instant(text: str, option: str) -> datetime | None:
    try:
        return parse_instant(text) if text else None
    except ValueError:
        msg = f"{option}: {text!r} is no instant; write 2013-10-01 or 2013-10-01T12:00:00+00:00"
        raise DataError(msg) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearse", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", default="", help="registered version to rehearse")
    parser.add_argument("--start", default="", help="first moment of the log to replay (default: its beginning)")
    parser.add_argument("--end", default="", help="moment before which to stop (default: its end)")
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the report (default: reports/ in the state folder)")
    parser.add_argument("--maturity", help="age at which a label should have arrived, as 36h (default: the setting)")
    parser.add_argument("--block", default="1d", help="stretch of time whose rows depend on each other (default 1d)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
