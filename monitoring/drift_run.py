"""One run of the drift job: reads log, packages and what was judged before; judges what is new. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring import degradation
from monitoring.drift_judge import SPAN, SPANS, Rules, judge_model
from monitoring.drift_store import Key, Window, of_length
from monitoring.drift_yardstick import Yardstick, package_error, read_yardstick
from monitoring.windows import Cut, Plan
from service.errors import PackageError
from service.progress import Say


@dataclass(frozen=True)
class Run:
    """What a run found.

    Attributes:
        windows: every known window of the plan's length, in order of time.
        fresh: how many of them this run judged.
        alarms: raised in those.
        failures: why windows could not be judged at all; they are tried again next time.
        gaps: per model what its package lacks.
        late: records that arrived after their window was judged.
        latest: the newest model's yardstick, when this run read it.
    """

    windows: tuple[Window, ...]
    fresh: int
    alarms: int
    failures: tuple[str, ...]
    gaps: tuple[str, ...]
    late: int
    latest: Yardstick | None


def run(
    found: Cut, before: tuple[Window, ...], models_dir: Path, plan: Plan, rules: Rules, again: bool,
    business: Mapping[int, float], say: Say,
) -> Run:  # fmt: skip
    """Judge every finished window that has no result yet.

    Args:
        before: results of earlier runs.
        again: judge windows anew whose records are still in the log.
        business: business figure by window.
    """
    known = {window.key: window for window in of_length(before, plan.length)}
    fresh: dict[Key, Window] = {}
    failures, gaps, late, latest = [], [], 0, None
    newest = found.frame["model"].iloc[-1] if len(found.frame) else None
    for digest, rows in found.frame.groupby("model", sort=False, dropna=False):
        name = None if pd.isna(digest) else str(digest)
        sizes = rows["window"].value_counts()
        keys = {int(w): (plan.starts(int(w)), plan.ends(int(w)), name) for w in sizes.index}
        late += sum(max(0, int(sizes[w]) - known[key].rows) for w, key in keys.items() if key in known and not again)
        wanted = sorted(w for w, key in keys.items() if again or key not in known)
        if not wanted:
            continue
        if name is None:
            made = [_nothing(plan, w, int(sizes[w]), "no primary answered") for w in wanted]
        else:
            try:
                yardstick = read_yardstick(models_dir, name, plan.length, SPANS)
            except PackageError as error:
                failures.append(package_error(name, error))
                continue
            gaps += [f"model {name[:12]}: {gap}" for gap in yardstick.gaps]
            latest = yardstick if name == newest else latest
            say(f"judging {len(wanted)} windows of model {name[:12]}")
            reach = rows[rows["window"].to_numpy() > wanted[0] - SPAN]
            moving = _moving(known.values(), name, plan, wanted[0])
            made = list(judge_model(reach, yardstick, plan, wanted, rules, moving))
        fresh |= {window.key: window for window in made}
    if latest is None and isinstance(newest, str):
        # Nothing new of it; the page shows its bands all the same.
        with suppress(PackageError):
            latest = read_yardstick(models_dir, newest, plan.length, SPANS)
    windows = _with_pauses({**known, **fresh}, plan)
    windows = _with_business(windows, business, plan, fresh if not again else {w.key: w for w in windows})
    alarms = sum(len(window.alarms) for window in windows if window.key in fresh)
    return Run(windows, len(fresh), alarms, tuple(failures), tuple(dict.fromkeys(gaps)), late, latest)


def _moving(known: Iterable[Window], digest: str, plan: Plan, first: int) -> float | None:
    """The moving average to go on from; one that is older than a stretch is forgotten."""
    start, oldest = plan.starts(first), plan.starts(first - SPAN)
    earlier = [w for w in known if w.digest == digest and oldest <= w.start < start and w.moving is not None]
    return max(earlier, key=lambda w: w.start).moving if earlier else None


def _with_pauses(found: Mapping[Key, Window], plan: Plan) -> tuple[Window, ...]:
    """Add windows in which nothing was asked; what was empty and no longer is gives way."""
    busy = {window.start for window in found.values() if window.digest is not None}
    kept = [w for w in found.values() if w.digest is not None or (w.rows and w.start not in busy)]
    if not kept:
        return ()
    starts = {window.start for window in kept}
    first = (min(starts) - plan.starts(0)) // plan.length
    kept += [
        _nothing(plan, w, 0, "no requests") for w in range(first, plan.finished + 1) if plan.starts(w) not in starts
    ]
    return of_length(kept, plan.length)


def _nothing(plan: Plan, window: int, rows: int, why: str) -> Window:
    return Window(plan.starts(window), plan.ends(window), None, None, rows, 0, "no data", why)


def _with_business(
    windows: tuple[Window, ...], figures: Mapping[int, float], plan: Plan, fresh: Mapping[Key, Window]
) -> tuple[Window, ...]:
    if not figures:
        return windows
    out: list[Window] = []
    past: list[float] = []
    for window in windows:
        value = figures.get((window.start - plan.starts(0)) // plan.length)
        judged = window
        if window.status == "judged" and window.key in fresh:
            others = tuple(c for c in window.checks if c.rule != "business")
            judged = replace(window, business=value, checks=(*others, degradation.business(value, past)))
        # Two models in one window share one figure.
        if value is not None and (not out or out[-1].start != window.start):
            past.append(value)
        out.append(judged)
    return tuple(out)


def read_business(path: Path, plan: Plan) -> dict[int, float]:
    """Read a CSV file with the columns ``at`` and ``value``; the mean per window.

    Raises:
        ValueError: when it has not these columns, or a time or number cannot be read.
    """
    frame = pd.read_csv(path)
    if not {"at", "value"} <= set(frame):
        msg = f"{path} has the columns {', '.join(map(str, frame.columns))}; needs at and value"
        raise ValueError(msg)
    at = pd.to_datetime(frame["at"], utc=True, format="ISO8601").dt.as_unit("us")
    window = at.astype("int64") // (plan.length // pd.Timedelta(microseconds=1))
    values = pd.to_numeric(frame["value"]).to_numpy(dtype=np.float64)
    means = pd.Series(values).groupby(window.to_numpy()).mean().dropna()
    return {int(str(w)): float(v) for w, v in means.items()}
