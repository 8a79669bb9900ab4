"""Compares the shadow with the primary: paired frames in, one frozen record of evidence out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from monitoring.campaign import Campaign, is_scored, ledger, newest_campaign
from monitoring.conditions import by_freshness
from monitoring.evidence import (
    Agreement,
    ClockSkew,
    Disagreement,
    Evidence,
    Histogram,
    Latency,
    PairedLatency,
    ScoreShift,
    Span,
)
from monitoring.failures import failure_rates
from monitoring.floor import changed_decisions, noise_floor
from monitoring.lost import lost_traffic
from monitoring.pairing import Paired
from monitoring.performance import blocks_of, performance
from monitoring.plan import Plan
from monitoring.quality import LabelCoverage
from monitoring.redacted import removed
from monitoring.sequential import interval
from monitoring.statistics import floats, ks, psi, rank_correlation, wasserstein
from monitoring.units import mean_units
from service.contract import Contract
from service.errors import DataError

LEAST_CALLS = 200
_EXAMPLES = 8


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        maturity: age at which a prediction's label should have arrived; younger rows are not scored, because the
            labels that come early are not like the others. Nor are rows of a block of time that is not over.
        plan: what is tested and how.
        now: the clock's now; None means the last moment the logs speak of, and so does a moment that most of the
            logs are later than: then it is the clock that is wrong. Of fewer rows, these are, and are left out.
    """

    maturity: timedelta = timedelta(hours=24)
    plan: Plan = field(default_factory=Plan)
    now: datetime | None = None


def compare(paired: Paired, contract: Contract, options: Options | None = None) -> Evidence:
    """Gather the evidence about the newest pair of models in the logs.

    Raises:
        DataError: when there are no predictions, or no shadow was asked in any of them.
    """
    options = options or Options()
    if paired.frame.empty:
        msg = "the prediction log holds no predictions; send requests or run `make replay`, then compare again"
        raise DataError(msg)
    if paired.frame["shadow_outcome"].isna().all():
        msg = (
            f"none of {len(paired.frame)} predictions has a shadow record; "
            "seat a shadow with `make train`, serve it, send requests, then compare again"
        )
        raise DataError(msg)
    skew = clock_skew(paired.frame, options.now)
    if skew.predictions:
        paired = replace(paired, frame=paired.frame[paired.frame["at"] <= options.now].reset_index(drop=True))
    campaign = newest_campaign(paired.frame)
    frame = campaign.frame
    if frame.empty:
        msg = "no prediction is newer than the last one of another pair of versions; send more requests, then compare"
        raise DataError(msg)
    return _evidence(campaign, paired, skew, contract, options)


def clock_skew(frame: pd.DataFrame, now: datetime | None) -> ClockSkew:
    """Count what the logs date later than the clock; nothing when most of them are: then the clock is behind."""
    moment = pd.Timestamp(now) if now else pd.NaT
    ahead = frame["at"] > moment
    if now is None or 2 * ahead.sum() > len(frame):
        return ClockSkew()
    known = frame["known_at"] > moment
    if not ahead.any() and not known.any():
        return ClockSkew()
    latest = max(frame["at"].max(), frame.loc[known, "known_at"].max() if known.any() else moment)
    return ClockSkew(int(ahead.sum()), int(known.sum()), (latest - moment).total_seconds())


def _evidence(campaign: Campaign, paired: Paired, skew: ClockSkew, contract: Contract, options: Options) -> Evidence:
    frame = campaign.frame
    scored = is_scored(frame)
    both = frame[frame["role"].eq("primary") & scored]
    now = _now(paired.frame, options.now)
    horizon = _whole_blocks(now - options.maturity, options.plan.block)
    truths = both[both["label"].notna() & (both["at"] < horizon)]
    slices = slice_columns(contract)
    thresholds = _thresholds(both, truths)
    single = both.loc[both["shadow_batch"].eq(1), "shadow_ms"]
    latency = (
        _latency("primary", both["ms.primary"]),
        _latency("shadow", both["shadow_ms"]),
        _latency("shadow_single", single),
    )
    return Evidence(
        primary=campaign.primary,
        shadow=campaign.shadow,
        opened=_moment(frame["at"].min()),
        as_of=_moment(now),
        contract=contract.digest,
        positive=contract.positive,
        span=Span(_moment(frame["at"].min()), _moment(frame["at"].max())),
        predictions=len(frame),
        other_versions=campaign.other_versions,
        service_versions=_counts(frame["service_version"]),
        roles=_counts(frame["role"]),
        confidences=_counts(frame["confidence"]),
        fallback_reasons=_counts(frame["fallback_reason"]),
        ledger=ledger(frame),
        lost_traffic=lost_traffic(frame, slices),
        agreement=tuple(_agreement(both, threshold, meaning) for threshold, meaning in thresholds.items()),
        scores=_score_shift(both),
        latency=tuple(entry for entry in latency if entry is not None),
        paired_latency=_paired_latency(both, options.plan),
        largest_batch=None if both["shadow_batch"].isna().all() else int(both["shadow_batch"].max()),
        label_coverage=_label_coverage(frame, horizon, options.maturity),
        performance=performance(truths, slices=slices, thresholds=tuple(thresholds), plan=options.plan),
        disagreements=_disagreements(both, contract),
        notes=paired.notes,
        failures=failure_rates(frame, scored, options.plan),
        noise=noise_floor(both),
        freshness=by_freshness(frame, scored, horizon, options.plan),
        clock=skew,
        slot=paired.slot,
        redacted=_redacted(frame, contract),
    )


def slice_columns(contract: Contract) -> tuple[str, ...]:
    """Columns of the paired frame the contract's slices are found in."""
    vector = set(contract.features)
    return tuple(f"vector.{name}" if name in vector else f"request.{name}" for name in contract.slices)


def _redacted(frame: pd.DataFrame, contract: Contract) -> dict[str, int]:
    gone = removed(frame)
    return {name: int(gone[name].sum()) for name in contract.slices if name in gone}


def _now(frame: pd.DataFrame, now: datetime | None) -> pd.Timestamp:
    last: pd.Timestamp = frame["at"].max()
    if now is not None and pd.Timestamp(now) >= last:
        return pd.Timestamp(now)
    known: pd.Timestamp = frame["known_at"].max()
    return last if pd.isna(known) else max(last, known)


def _whole_blocks(moment: pd.Timestamp, block: timedelta) -> pd.Timestamp:
    """Start of the block a moment falls in: what lies before it is in blocks that are over."""
    epoch = pd.Timestamp(0, tz="UTC")
    return epoch + (moment - epoch) // block * block


def _thresholds(both: pd.DataFrame, truths: pd.DataFrame) -> dict[float, str]:
    out = {0.5: "more likely than not"}
    if not truths.empty:
        out[round(float(truths["label"].mean()), 3)] = "likelier than the observed share of positives"
    elif not both.empty:
        out[round(float(both["prediction"].mean()), 3)] = "likelier than the primary's mean score"
    return out


def _agreement(both: pd.DataFrame, threshold: float, meaning: str) -> Agreement:
    primary, shadow = both["prediction"] >= threshold, both["shadow_prediction"] >= threshold
    return Agreement(
        threshold=threshold,
        meaning=meaning,
        rows=len(both),
        agree=int((primary == shadow).sum()),
        only_primary_positive=int((primary & ~shadow).sum()),
        only_shadow_positive=int((~primary & shadow).sum()),
        noise=changed_decisions(both, threshold),
    )


def _score_shift(both: pd.DataFrame) -> ScoreShift | None:
    if both.empty:
        return None
    primary, shadow = floats(both["prediction"]), floats(both["shadow_prediction"])
    edges = np.linspace(0, 1, 41)
    distance, p_value = ks(primary, shadow)
    counts = [tuple(int(n) for n in np.histogram(scores, edges)[0]) for scores in (primary, shadow)]
    return ScoreShift(
        rows=len(both),
        mean_primary=float(primary.mean()),
        mean_shadow=float(shadow.mean()),
        psi=psi(primary, shadow),
        ks=distance,
        ks_p_value=p_value,
        wasserstein=wasserstein(primary, shadow),
        rank_correlation=rank_correlation(primary, shadow),
        histogram=Histogram(tuple(float(e) for e in edges), counts[0], counts[1]),
    )


def _latency(name: str, milliseconds: pd.Series) -> Latency | None:
    values = floats(milliseconds.dropna())
    if not len(values):
        return None
    p50, p95, p99 = (float(v) for v in np.percentile(values, [50, 95, 99]))
    return Latency(name, len(values), p50, p95, p99)


def _paired_latency(both: pd.DataFrame, plan: Plan) -> PairedLatency | None:
    known = both[(both["ms.primary"] > 0) & (both["shadow_ms"] > 0)]
    alone = known[known["shadow_batch"].eq(1)]
    single = len(alone) >= LEAST_CALLS
    rows = alone if single else known
    if rows.empty:
        return None
    primary, shadow = floats(rows["ms.primary"]), floats(rows["shadow_ms"])
    p50, p95, p99 = (float(v) for v in np.percentile(shadow - primary, [50, 95, 99]))
    ratio = mean_units(np.log(shadow / primary), blocks_of(rows["at"], plan.block))
    low, high = (None if bound is None else math.exp(bound) for bound in interval(ratio, plan.confidence))
    return PairedLatency(len(rows), single, p50, p95, p99, math.exp(ratio.value), low, high)


def _label_coverage(frame: pd.DataFrame, horizon: pd.Timestamp, maturity: timedelta) -> LabelCoverage:
    mature = frame["at"] < horizon
    return LabelCoverage(
        maturity_hours=maturity / timedelta(hours=1),
        mature=int(mature.sum()),
        labelled=int((mature & frame["label"].notna()).sum()),
        immature=int((~mature).sum()),
    )


def _disagreements(both: pd.DataFrame, contract: Contract) -> tuple[Disagreement, ...]:
    distance = (both["prediction"] - both["shadow_prediction"]).abs()
    rows = both.loc[distance.sort_values(ascending=False, kind="stable").index[:_EXAMPLES]]
    return tuple(
        Disagreement(
            request_id=str(row["request_id"]),
            at=_moment(row["at"]),
            primary=float(row["prediction"]),
            shadow=float(row["shadow_prediction"]),
            label=None if pd.isna(row["label"]) else float(row["label"]),
            vector={name: _plain(row[f"vector.{name}"]) for name in contract.features},
        )
        for row in rows.to_dict("records")
    )


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _counts(column: pd.Series) -> dict[str, int]:
    counted: Mapping[Any, Any] = column.value_counts().to_dict()
    return {str(value): int(n) for value, n in counted.items()}


def _moment(value: Any) -> datetime:
    moment: datetime = pd.Timestamp(value).to_pydatetime()
    return moment
