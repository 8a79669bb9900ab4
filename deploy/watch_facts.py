"""What was expected of a promoted model, from its time as shadow, and what it does: frames in, frozen records out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from deploy.watch_scores import Scores, moved, tabled
from monitoring.campaign import valid_scores
from monitoring.compare import LEAST_CALLS
from monitoring.sequential import interval
from monitoring.statistics import Floats, log_losses
from monitoring.units import mean_units
from service.package import PackagedModel

# Reasons that are the primary's own doing; a feature store that is away is not.
FAILURES = ("primary_timeout", "primary_error", "primary_invalid_output", "primary_absent", "circuit_open")
_SHADOW_FAILURES = ("timeout", "error", "invalid_output", "circuit_open")
MOST_SCORED = 20_000
# One-sided 95 %: only harm is asked about. Five whole days can show it, six would be needed for both sides.
CONFIDENCE = 0.9
_DAY = timedelta(days=1)
_SAME = 1e-9


@dataclass(frozen=True)
class Expected:
    """What speaks for a model when its watch opens; None where nothing is known.

    Attributes:
        rehearsed: requests it scored as shadow.
        shadow_failures, replaced_failures: share of its own failures, and of the replaced primary's.
        replaced_fallbacks: share of requests the replaced primary did not answer, for whatever reason.
        shadow_p95, replaced_p95: milliseconds of a call.
        scores, replaced_scores: both models' scores before.
    """

    rehearsed: int = 0
    shadow_failures: float | None = None
    replaced_failures: float | None = None
    replaced_fallbacks: float | None = None
    shadow_p95: float | None = None
    replaced_p95: float | None = None
    scores: Scores | None = None
    replaced_scores: Scores | None = None


@dataclass(frozen=True)
class Shift:
    """How far scores moved, as PSI over bins of the time before, at the same hours of the day.

    Attributes:
        rows, before: live scores, and those they are compared with.
        value: of the promoted model.
        days: largest PSI of one day of its time as shadow against the other days.
        replaced: of the replaced model's scores of the same requests; None when it could not be asked.
    """

    rows: int
    before: int
    value: float
    days: float
    replaced: float | None


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
        slow: calls slower than the limit; ``late_slow`` of the last third of the calls.
        unfaithful: share of looked-at answers that the logged vector does not reproduce.
    """

    requests: int
    minutes: float
    failures: Mapping[str, int]
    late_failures: int
    late_requests: int
    fallbacks: int
    calls: int
    p95: float | None
    slow: int
    late_slow: int
    late_calls: int
    shift: Shift | None
    loss: Loss | None
    labelled: int
    unfaithful: float | None


def expected(
    predictions: pd.DataFrame, shadow: pd.DataFrame, promoted: str, replaced: str, since: datetime, slot: str | None
) -> Expected:
    """Gather what is known of a model from before it was promoted.

    Args:
        predictions, shadow: the logs (:mod:`monitoring.export`).
        promoted, replaced: digests.
        since: when it was promoted.
        slot: where it rehearsed.
    """
    lines = shadow[shadow["at"] <= since]
    if "shadow" in lines and slot is not None:
        lines = lines[lines["shadow"].isna() | lines["shadow"].eq(slot)]
    ours = lines["model_digest"].eq(promoted)
    scored = lines[ours & lines["outcome"].eq("scored") & valid_scores(lines["prediction"])]
    rows = _untreated(predictions[predictions["at"] <= since])
    if not scored.empty:
        # What another pair of models did is another story.
        rows = rows[rows["at"] >= scored["at"].min()]
        lines = lines[lines["at"] >= scored["at"].min()]
    old = rows[rows["role"].eq("primary") & rows["model_digest"].eq(replaced)]
    single = scored.loc[scored["batch"].eq(1), "latency_ms"]
    failed = lines["reason"].isin(_SHADOW_FAILURES)
    return Expected(
        rehearsed=len(scored),
        shadow_failures=float(failed.sum()) / len(lines) if len(scored) else None,
        replaced_failures=_failed(rows).mean() if len(old) else None,
        replaced_fallbacks=float(rows["role"].ne("primary").mean()) if len(old) else None,
        shadow_p95=_p95(single),
        replaced_p95=_p95(old["ms.primary"]),
        scores=tabled(scored["at"], _floats(scored["prediction"])),
        replaced_scores=tabled(old["at"], _floats(old["prediction"])),
    )


def live(
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    before: Expected,
    *,
    promoted: str,
    since: datetime,
    until: datetime,
    mature: datetime,
    slow_ms: float | None,
    models: tuple[PackagedModel, PackagedModel] | None,
) -> Live:
    """Gather what a model does since it was promoted.

    Args:
        truth: ``request_id, label`` of labelled requests.
        since, until: the watched stretch of time.
        mature: requests before this moment should have their label.
        slow_ms: milliseconds from which a call is too slow; None: not asked.
        models: promoted and replaced, to score logged vectors again; None when either cannot be loaded.
    """
    rows = predictions[(predictions["at"] > since) & (predictions["at"] <= until)]
    rows = _untreated(rows).drop_duplicates("request_id").sort_values("at", kind="stable")
    # While a service changes over the replaced model still answers.
    rows = rows[rows["role"].ne("primary") | rows["model_digest"].eq(promoted)]
    own = rows[rows["role"].eq("primary")]
    failed, calls = _failed(rows), own["ms.primary"].dropna()
    slow = calls > slow_ms if slow_ms is not None else calls < 0
    late, late_calls = failed[len(failed) * 2 // 3 :], slow[len(slow) * 2 // 3 :]
    own = own[own["confidence"].eq("normal")]
    labelled = own.merge(truth[["request_id", "label"]], on="request_id", how="inner")
    labelled = labelled[labelled["at"] <= mature]
    again = _again(own, labelled, models)
    return Live(
        requests=len(rows),
        minutes=float((rows["at"].max() - rows["at"].min()) / timedelta(minutes=1)) if len(rows) else 0.0,
        failures={str(k): int(n) for k, n in _reasons(rows)[failed].value_counts().items()},
        late_failures=int(late.sum()),
        late_requests=len(late),
        fallbacks=int(rows["role"].ne("primary").sum()),
        calls=len(calls),
        p95=_p95(calls),
        slow=int(slow.sum()),
        late_slow=int(late_calls.sum()),
        late_calls=len(late_calls),
        shift=_shift(own, before, again.sampled if again else None),
        loss=_loss(again.labelled, since, mature) if again else None,
        labelled=len(labelled),
        unfaithful=again.unfaithful if again else None,
    )


@dataclass(frozen=True)
class _Again:
    """Requests with ``replaced``: what the replaced model says to the logged vector."""

    sampled: pd.DataFrame
    labelled: pd.DataFrame
    unfaithful: float


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
        same = np.abs(first - _floats(some["prediction"])) <= _SAME
        wrong, asked = wrong + int((~same).sum()), asked + len(some)
        frames.append(some.assign(replaced=second)[same])
    return _Again(frames[0], frames[1], wrong / asked)


def _vectors(rows: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {str(n): str(n).removeprefix("vector.") for n in rows if str(n).startswith("vector.")}
    frame = rows[list(columns)].rename(columns=columns).astype(object)
    return [{str(k): v for k, v in row.items()} for row in frame.mask(frame.isna(), None).to_dict("records")]


def _shift(own: pd.DataFrame, before: Expected, sampled: pd.DataFrame | None) -> Shift | None:
    if before.scores is None or own.empty:
        return None
    found = moved(before.scores, own["at"], _floats(own["prediction"]))
    if found is None:
        return None
    value, days, then = found
    replaced = None
    if before.replaced_scores is not None and sampled is not None and len(sampled):
        other = moved(before.replaced_scores, sampled["at"], _floats(sampled["replaced"]))
        replaced = other[0] if other else None
    return Shift(len(own), then, value, days, replaced)


def _loss(rows: pd.DataFrame, since: datetime, mature: datetime) -> Loss | None:
    """Whole days count from the promotion: half a day of the last one has other labels than a whole one."""
    if rows.empty:
        return None
    day = ((rows["at"] - pd.Timestamp(since)) // pd.Timedelta(_DAY)).to_numpy()
    whole = day < (mature - since) // _DAY
    rows, day = rows[whole], day[whole]
    if rows.empty:
        return None
    labels = _floats(rows["label"])
    first, second = (log_losses(labels, _floats(rows[name])) for name in ("prediction", "replaced"))
    units = mean_units(first - second, day.astype(np.int64))
    low, high = interval(units, CONFIDENCE)
    return Loss(len(rows), len(units.sums), float(first.mean()), float(second.mean()), units.value, low, high)


def _untreated(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["arm"].ne("treatment")] if "arm" in rows else rows


def _reasons(rows: pd.DataFrame) -> pd.Series:
    """Why the primary did not answer: the first of two reasons when the fallback failed too."""
    reason = rows["fallback_reason"].fillna("").astype(str)
    return reason.str.removeprefix("both_failed: ").str.split(",").str[0]


def _failed(rows: pd.DataFrame) -> pd.Series:
    return rows["role"].ne("primary") & _reasons(rows).isin(FAILURES)


def _p95(milliseconds: pd.Series) -> float | None:
    values = _floats(milliseconds.dropna())
    return float(np.percentile(values, 95)) if len(values) >= LEAST_CALLS else None


def _floats(column: pd.Series) -> Floats:
    return column.to_numpy(dtype=np.float64)
