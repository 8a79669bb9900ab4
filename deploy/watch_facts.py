"""What a promoted model does since: frames in, one frozen record out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from deploy.watch_expected import Expected, failed, p95, reasons, untreated
from deploy.watch_scores import moved
from monitoring.redacted import removed
from monitoring.sequential import interval
from monitoring.statistics import floats, log_losses
from monitoring.units import mean_units
from service.package import PackagedModel

MOST_SCORED = 20_000
LATENCY_TIMES, LATENCY_SLACK_MS = 1.5, 0.5
# One-sided 95 %: only harm is asked about. Five whole days can show it, six would be needed for both sides.
CONFIDENCE = 0.9
_DAY = timedelta(days=1)
_SAME = 1e-9
# Below this PSI a day did not move, and a ratio to it says nothing.
_STILL = 0.05


@dataclass(frozen=True)
class Shift:
    """How far scores moved, as PSI over bins of the time before, at the same hours of the day.

    Attributes:
        rows, before: live scores, and those they are compared with.
        value: of the promoted model.
        days: largest PSI of one day of its time as shadow against the other days.
        replaced: of the replaced model's scores of the same requests; None when it could not be asked.
        times: most times as far as the replaced model's a day's scores moved before the promotion.
    """

    rows: int
    before: int
    value: float
    days: float
    replaced: float | None
    times: float


@dataclass(frozen=True)
class Loss:
    """Log loss of promoted minus replaced model on the same mature labelled requests.

    Attributes:
        low, high: bounds that hold at all times at once, 95 % each; None with too few whole days.
    """

    rows: int
    days: int
    promoted: float
    replaced: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Live:
    """What the promoted model does.

    Attributes:
        requests: answered since, without those of a split's treatment.
        minutes: of clock time between the first and the last of them.
        failures: per reason; ``late_failures`` of the last third of the requests.
        load: how many times as slow as before lookups are, at least 1: more callers slow every model down.
        slow_ms: milliseconds that at most one call of twenty may take: 1.5 times the p95 known from before, by the
            load, and half a one; None when nothing is known.
        slow: calls slower than that; ``late_slow`` of the last third of the calls.
        unfaithful: share of looked-at answers that the logged vector does not reproduce.
        redacted: features whose values some of those vectors lack on purpose.
    """

    requests: int
    minutes: float
    failures: Mapping[str, int]
    late_failures: int
    late_requests: int
    fallbacks: int
    calls: int
    p95: float | None
    load: float
    slow_ms: float | None
    slow: int
    late_slow: int
    late_calls: int
    shift: Shift | None
    loss: Loss | None
    labelled: int
    unfaithful: float | None
    redacted: tuple[str, ...]


def live(
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    before: Expected,
    *,
    promoted: str,
    since: datetime,
    until: datetime,
    mature: datetime,
    models: tuple[PackagedModel, PackagedModel] | None,
) -> Live:
    """Gather what a model does since it was promoted.

    Args:
        truth: ``request_id, label`` of labelled requests.
        since, until: the watched stretch of time.
        mature: requests before this moment should have their label.
        models: promoted and replaced, to score logged vectors again; None when either cannot be loaded.
    """
    rows = predictions[(predictions["at"] > since) & (predictions["at"] <= until)]
    rows = untreated(rows).drop_duplicates("request_id").sort_values("at", kind="stable")
    # While a service changes over the replaced model still answers.
    rows = rows[rows["role"].ne("primary") | rows["model_digest"].eq(promoted)]
    own = rows[rows["role"].eq("primary")]
    missed, calls = failed(rows), own["ms.primary"].dropna()
    load, known = _load(before, own), [p for p in (before.shadow_p95, before.replaced_p95) if p is not None]
    slow_ms = LATENCY_TIMES * load * max(known) + LATENCY_SLACK_MS if known else None
    slow = calls > (slow_ms or math.inf)
    late, late_calls = missed[len(missed) * 2 // 3 :], slow[len(slow) * 2 // 3 :]
    own = own[own["confidence"].eq("normal")]
    labelled = own.merge(truth[["request_id", "label"]], on="request_id", how="inner")
    labelled = labelled[labelled["at"] <= mature]
    again = _again(own, labelled, models)
    return Live(
        requests=len(rows),
        minutes=float((rows["at"].max() - rows["at"].min()) / timedelta(minutes=1)) if len(rows) else 0.0,
        failures={str(k): int(n) for k, n in reasons(rows)[missed].value_counts().items()},
        late_failures=int(late.sum()),
        late_requests=len(late),
        fallbacks=int(rows["role"].ne("primary").sum()),
        calls=len(calls),
        p95=p95(calls),
        load=load,
        slow_ms=slow_ms,
        slow=int(slow.sum()),
        late_slow=int(late_calls.sum()),
        late_calls=len(late_calls),
        shift=_shift(own, before, again.sampled if again else None),
        loss=_loss(again.labelled, since, mature) if again else None,
        labelled=len(labelled),
        unfaithful=again.unfaithful if again else None,
        redacted=again.redacted if again else (),
    )


@dataclass(frozen=True)
class _Again:
    """Requests with ``replaced``: what the replaced model says to the logged vector."""

    sampled: pd.DataFrame
    labelled: pd.DataFrame
    unfaithful: float
    redacted: tuple[str, ...]


def _again(
    own: pd.DataFrame, labelled: pd.DataFrame, models: tuple[PackagedModel, PackagedModel] | None
) -> _Again | None:
    if models is None or own.empty:
        return None
    frames, wrong, asked = [], 0, 0
    for frame in (own, labelled):
        some = frame.iloc[:: max(1, -(-len(frame) // MOST_SCORED))]
        vectors = _vectors(some)
        first, second = (np.asarray(m.score(vectors), dtype=np.float64) if vectors else np.empty(0) for m in models)
        # A redacted or damaged vector would be scored too, and mean nothing.
        same = np.abs(first - floats(some["prediction"])) <= _SAME
        wrong, asked = wrong + int((~same).sum()), asked + len(some)
        frames.append(some.assign(replaced=second)[same])
    features = {str(name).removeprefix("vector.") for name in own if str(name).startswith("vector.")}
    gone = features & (removed(own).keys() | removed(labelled).keys())
    return _Again(frames[0], frames[1], wrong / asked, tuple(sorted(gone)))


def _vectors(rows: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {str(n): str(n).removeprefix("vector.") for n in rows if str(n).startswith("vector.")}
    frame = rows[list(columns)].rename(columns=columns).astype(object)
    return [{str(k): v for k, v in row.items()} for row in frame.mask(frame.isna(), None).to_dict("records")]


def _shift(own: pd.DataFrame, before: Expected, sampled: pd.DataFrame | None) -> Shift | None:
    if before.scores is None or own.empty:
        return None
    found = moved(before.scores, own["at"], floats(own["prediction"]))
    if found is None:
        return None
    replaced, times = None, 0.0
    if before.replaced_scores is not None and sampled is not None and len(sampled):
        other = moved(before.replaced_scores, sampled["at"], floats(sampled["replaced"]))
        if other is not None:
            replaced = other.value
            both = found.days.keys() & other.days.keys()
            times = max((found.days[day] / max(other.days[day], _STILL) for day in both), default=0.0)
    return Shift(len(own), found.before, found.value, max(found.days.values(), default=0.0), replaced, times)


def _loss(rows: pd.DataFrame, since: datetime, mature: datetime) -> Loss | None:
    """Whole days count from the promotion: half a day of the last one has other labels than a whole one."""
    if rows.empty:
        return None
    day = ((rows["at"] - pd.Timestamp(since)) // pd.Timedelta(_DAY)).to_numpy()
    whole = day < (mature - since) // _DAY
    rows, day = rows[whole], day[whole]
    if rows.empty:
        return None
    labels = floats(rows["label"])
    first, second = (log_losses(labels, floats(rows[name])) for name in ("prediction", "replaced"))
    units = mean_units(first - second, day.astype(np.int64))
    low, high = interval(units, CONFIDENCE)
    return Loss(len(rows), len(units.sums), float(first.mean()), float(second.mean()), units.value, low, high)


def _load(before: Expected, own: pd.DataFrame) -> float:
    now = p95(own["ms.lookup"])
    return max(now / before.lookup_p95, 1.0) if now and before.lookup_p95 else 1.0
