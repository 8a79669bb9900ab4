"""The drift job over a year of real predictions: time, memory, false alarms, and how soon it finds December.

Four measurements. *Speed*: the command over the logged year and its labels. *False alarms*: the year with its drift
removed, by rows shuffled in time, and by whole days shuffled among days of the same weekday, which keeps what makes
rows of one day alike; each half of the year is answered by a model trained on the other. *December*: a model trained as
of 1 October and every window after it. *Power*: each number of the contract moved by one and by two standard deviations
for a week of November.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from feature_repo import features as definitions
from monitoring.drift_judge import Rules
from monitoring.drift_run import Run, run
from monitoring.windows import Plan, cut
from service.contract import Contract
from service.definitions import contracts
from service.models import open_model
from service.package import save_package
from service.progress import Progress, Say
from service.settings import settings
from training.dataset import join_features
from training.fitting import Fitted, encode, fit_role, known_rows
from training.prepare import prepare
from training.store import apply, open_store
from training.train import SEED

MOST_SECONDS, MOST_MB, MOST_FALSE_A_MONTH, MOST_DAYS = 30.0, 2048, 1.0, 3
YEAR = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
OCTOBER, DECEMBER = datetime(2013, 10, 1, tzinfo=UTC), datetime(2013, 12, 1, tzinfo=UTC)
SEGMENT = 50_000
_MONTH_DAYS = 30.44
Frame = pd.DataFrame


def main() -> int:
    """Run all four, print one JSON line, and return the exit code: 1 when a limit is missed."""
    say = Progress(sys.stderr)
    contract = contracts(definitions)["primary"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows = joined(contract)
        result: dict[str, Any] = {}
        say(f"joined {len(rows):,} rows; fitting as of 1 October")
        fitted = fit_role("primary", known_rows(rows, OCTOBER), contract, OCTOBER, SEED)
        year = answered(rows, fitted, save(fitted, home), contract)
        truth = rows[["label", "label_known_at"]].set_axis(["label", "known_at"], axis=1)
        result |= speed(year.join(truth), contract, home, say)
        say("December")
        result |= december(year, rows, home)
        say("planted shifts")
        result |= planted(year, contract, home)
        for name, shuffled in (("rows", rows_shuffled), ("days", days_shuffled)):
            say(f"a year of {name} shuffled")
            result |= false_alarms(name, shuffled(rows), contract, home)
    failures = missed(result)
    for failure in failures:
        print(f"monitor: {failure}", file=sys.stderr)
    print(json.dumps({**result, "passed": not failures}))
    return 1 if failures else 0


def missed(result: dict[str, Any]) -> list[str]:
    """Say which limits a result misses."""
    limits = (
        ("seconds", MOST_SECONDS), ("peak_mb", MOST_MB), ("false_alarms_a_month_rows", MOST_FALSE_A_MONTH),
        ("days_to_december", MOST_DAYS),
    )  # fmt: skip
    return [
        f"{key}={result[key]} is above {limit:g}" for key, limit in limits if result[key] is None or result[key] > limit
    ]


def joined(contract: Contract) -> Frame:
    """Every labelled row with its features, in order of time."""
    prepare(settings())
    store = open_store(settings())
    apply(store, settings())
    rows = pd.read_parquet(settings().state_dir / "rows.parquet")
    frame = join_features(store, rows, contract)
    return frame.sort_values("event_timestamp", kind="stable").reset_index(drop=True)


def save(fitted: Fitted, home: Path) -> str:
    """Package a model and return its digest."""
    digest, _ = save_package(
        home / "models", fitted.model, fitted.signature, fitted.baseline, {}, fitted.contract, fitted.reference
    )
    return digest


def answered(rows: Frame, fitted: Fitted, digest: str, contract: Contract) -> Frame:
    """What the prediction log would hold, as monitoring reads it."""
    names = contract.features
    score = open_model(fitted.signature.format, fitted.model, len(names))
    matrix = encode(rows, names, dict(fitted.signature.categories))
    vectors = rows[list(names)].rename(columns=lambda name: f"vector.{name}")
    ms = np.random.default_rng(0).gamma(9, 0.4, len(rows))
    head = {
        "request_id": [f"r{i:07d}" for i in rows.index], "at": rows["event_timestamp"], "role": "primary",
        "model_version": digest[:4], "model_digest": digest, "prediction": score(matrix), "ms.total": ms,
    }  # fmt: skip
    return pd.concat([pd.DataFrame(head, index=rows.index), vectors], axis=1)


def speed(year: Frame, contract: Contract, home: Path, say: Say) -> dict[str, Any]:
    """Time the command over the whole log and over every second line of it, in processes of their own."""
    out: dict[str, Any] = {}
    for part, frame in (("half", year.iloc[::2]), ("", year)):
        state = home / f"state{part}"
        say(f"writing {len(frame):,} lines")
        write_log(frame, contract, state / "logs" / "predictions")
        write_labels(frame, state / "logs" / "labels")
        env = {
            **os.environ, "UNDERSTUDY_STATE_DIR": str(state), "UNDERSTUDY_MODELS_DIR": str(home / "models"),
            "UNDERSTUDY_CLOCK": YEAR[1].isoformat(),
        }  # fmt: skip
        say("python -m monitoring.monitor_job")
        start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        # Through a shell that forks: a child of this process would take over this process's own peak as its peak.
        command = ["sh", "-c", '"$0" -W ignore -m monitoring.monitor_job; exit $?', sys.executable]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        last = json.loads(done.stdout.splitlines()[-1])
        key = f"_{part}" if part else ""
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        out |= {f"rows{key}": last["rows"], f"seconds{key}": round(seconds, 1), f"cpu_seconds{key}": round(cpu, 1)}
        if not part:
            out |= {"peak_mb": last["peak_mb"], "alarms": last["alarms"]}
    return out


def write_log(frame: Frame, contract: Contract, folder: Path) -> None:
    """Write the prediction log as the service does."""
    folder.mkdir(parents=True)
    views = {view.name: None for view in contract.views}
    names = [f"vector.{name}" for name in contract.features]
    whole = [f"vector.{spec.name}" for spec in contract.fields if spec.dtype == "int"]
    plain = frame[names].astype(object)
    plain = plain.mask(plain.isna(), None)
    for name in whole:
        plain[name] = pd.Series([None if v is None else int(v) for v in plain[name]], plain.index, dtype=object)
    plain.columns = list(contract.features)
    fixed: dict[str, Any] = {
        "request": {}, "event_times": views, "role": "primary", "confidence": "normal", "fallback_reason": None,
        "violations": [], "shadow_sampled": True, "service_version": "0.1.0",
    }  # fmt: skip
    heads = frame[["request_id", "at", "model_version", "model_digest", "prediction"]]
    heads = heads.assign(at=heads["at"].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    for n, start in enumerate(range(0, len(frame), SEGMENT)):
        body = bytearray()
        for head, vector, ms in zip(
            heads.iloc[start : start + SEGMENT].to_dict("records"),
            plain.iloc[start : start + SEGMENT].to_dict("records"),
            frame["ms.total"].iloc[start : start + SEGMENT].tolist(), strict=True,
        ):  # fmt: skip
            line: dict[Any, Any] = {**fixed, **head, "vector": vector, "stages_ms": {"lookup": 0.6, "total": ms}}
            body += orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        (folder / f"20130101T000000-1-bench-{n:05d}.jsonl").write_bytes(body)


def write_labels(frame: Frame, folder: Path) -> None:
    """Write the label log as the service does."""
    folder.mkdir(parents=True)
    known = frame[frame["label"].notna()]
    at = known["known_at"].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lines = (
        orjson.dumps(
            {"request_id": name, "label": label, "known_at": when, "at": when}, option=orjson.OPT_APPEND_NEWLINE
        )
        for name, label, when in zip(known["request_id"], known["label"], at, strict=True)
    )
    (folder / "20130101T000000-1-bench-00000.jsonl").write_bytes(b"".join(lines))


def judged(frame: Frame, home: Path, weekly: bool = True) -> Run:
    """Judge every day of a frame."""
    plan = Plan(timedelta(days=1), YEAR[1], timedelta(days=400))
    return run(cut(frame, plan), (), home / "models", plan, Rules(weekly=weekly), False, {}, lambda _: None)


def december(year: Frame, rows: Frame, home: Path) -> dict[str, Any]:
    """Days from the morning of December's rise to the end of the first window with an alarm.

    The rise is the first day of December on which more rows are positive than in December altogether. Every alarm of
    the two months before is listed, for what it is: a change, or a false one.
    """
    found = judged(year[year["at"] >= OCTOBER], home)
    late = rows[rows["event_timestamp"] >= DECEMBER]
    daily = late.groupby(late["event_timestamp"].dt.floor("D"))["label"].mean()
    rise = daily[daily > late["label"].mean()].index[0]
    hits = [w for w in found.windows if w.start >= rise and w.alarms]
    for window in found.windows:
        if window.alarms:
            print(f"    {window.start:%d %b}  {', '.join(window.alarms)}", file=sys.stderr)
    return {
        "december_rises": f"{rise:%Y-%m-%d}",
        "days_to_december": (hits[0].end - rise).days if hits else None,
        "december_found_by": list(hits[0].alarms) if hits else [],
        "windows_in_alarm": {
            f"{month:%b}": sum(bool(w.alarms) for w in found.windows if w.start.month == month.month)
            for month in (OCTOBER, datetime(2013, 11, 1, tzinfo=UTC), DECEMBER)
        },
    }


def planted(year: Frame, contract: Contract, home: Path) -> dict[str, Any]:
    """How many columns are named within a week when each in turn is moved."""
    first, last, end = (datetime(2013, 11, day, tzinfo=UTC) for day in (5, 12, 19))
    around = year[(year["at"] >= first) & (year["at"] < end)]
    moved = around["at"] >= last
    numbers = [f"vector.{name}" for name in contract.numbers]
    out: dict[str, Any] = {"columns": len(numbers)}
    for size in (1, 2):
        named = []
        for name in numbers:
            values = year[name].astype("float64")
            shifted = around.assign(**{name: values[around.index] + moved * size * values.std()})
            alarm = f"drift:{name.removeprefix('vector.')}"
            if any(alarm in w.alarms for w in judged(shifted, home, weekly=False).windows if w.start >= last):
                named.append(alarm)
        out[f"columns_named_{size}_sd"] = len(named)
    return out


def rows_shuffled(rows: Frame) -> Frame:
    """The year with every row at another row's time."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    times = rows[["event_timestamp", "label_known_at"]].reset_index(drop=True)
    shuffled = rows.iloc[order].reset_index(drop=True)
    shuffled[["event_timestamp", "label_known_at"]] = times
    return shuffled


def days_shuffled(rows: Frame) -> Frame:
    """The year with whole days in the place of others of their weekday."""
    rng = np.random.default_rng(SEED)
    day = rows["event_timestamp"].dt.floor("D")
    moved: dict[Any, Any] = {}
    for _, same in pd.Series(sorted(day.unique())).groupby(lambda i: i % 7):
        moved |= dict(zip(same, rng.permutation(same), strict=True))
    offset = pd.to_datetime(day.map(moved), utc=True) - day
    shuffled = rows.copy()
    for name in ("event_timestamp", "label_known_at"):
        shuffled[name] = (rows[name] + offset).astype(rows[name].dtype)
    return shuffled.sort_values("event_timestamp", kind="stable").reset_index(drop=True)


def false_alarms(name: str, rows: Frame, contract: Contract, home: Path) -> dict[str, Any]:
    """Alarms a month when nothing changes: each half of the year judged by a model of the other half."""
    middle = rows["event_timestamp"].iloc[0].floor("D") + timedelta(days=182)
    first = rows["event_timestamp"] < middle
    parts = []
    for trained, replayed in ((first, ~first), (~first, first)):
        known = rows[trained & rows["usable"]]
        at = known["event_timestamp"].iloc[-1].ceil("D").to_pydatetime()
        fitted = fit_role("primary", known, contract, at, SEED)
        parts.append(answered(rows[replayed], fitted, save(fitted, home), contract))
    found = judged(pd.concat(parts).sort_values("at", kind="stable"), home)
    windows = [window for window in found.windows if window.status == "judged"]
    raised = Counter(alarm for window in windows for alarm in window.alarms)
    for alarm, times in raised.most_common():
        print(f"    {times:3} windows  {alarm}", file=sys.stderr)
    months = len(windows) / _MONTH_DAYS
    return {
        f"false_alarms_a_month_{name}": round(sum(raised.values()) / months, 2),
        f"false_windows_a_month_{name}": round(sum(bool(w.alarms) for w in windows) / months, 2),
        f"false_by_rule_{name}": _by_rule(raised),
    }


def _by_rule(raised: Counter[str]) -> dict[str, int]:
    out: Counter[str] = Counter()
    for alarm, times in raised.items():
        out[alarm.partition(":")[0]] += times
    return dict(out)


if __name__ == "__main__":
    sys.exit(main())
