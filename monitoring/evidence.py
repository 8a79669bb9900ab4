"""What a comparison found: frozen records of plain numbers, enough for the verdict, the page and the JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from monitoring.failures import FailureRate
from monitoring.floor import NoiseFloor
from monitoring.offline import Rehearsal
from monitoring.pairing import FIRST, Notes
from monitoring.quality import Freshness, LabelCoverage, Performance
from monitoring.standing import Standing


@dataclass(frozen=True)
class Version:
    """One model by version and digest; both None when none is known."""

    version: str | None
    digest: str | None


@dataclass(frozen=True)
class Span:
    """First and last moment of the campaign's predictions."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Ledger:
    """What became of every sampled request: ``sampled = scored + sum(dropped) + unaccounted``.

    Attributes:
        sampled: requests the shadow was asked to rehearse.
        scored: those with a valid score.
        dropped: the others by reason.
        unaccounted: sampled requests without any shadow line.
    """

    sampled: int
    scored: int
    dropped: dict[str, int]
    unaccounted: int

    @property
    def lost(self) -> int:
        """Sampled requests without a score."""
        return self.sampled - self.scored

    @property
    def coverage(self) -> float | None:
        """Share of sampled requests scored; None when nothing was sampled."""
        return self.scored / self.sampled if self.sampled else None

    def rate(self, *reasons: str) -> float | None:
        """Share of sampled requests dropped for these reasons; None when nothing was sampled."""
        return sum(self.dropped.get(reason, 0) for reason in reasons) / self.sampled if self.sampled else None


@dataclass(frozen=True)
class LostDifference:
    """One thing in which lost and kept requests were compared.

    Attributes:
        lost, kept: the two means.
        rows: lost requests it is known of.
        shift: their distance in standard deviations.
        shift_low: lower bound of it, all comparisons at once at 97.5 %, not below 0.
    """

    what: str
    lost: float
    kept: float
    rows: int
    shift: float
    shift_low: float


@dataclass(frozen=True)
class LostTraffic:
    """Whether the requests the shadow lost differ from those it kept, by the primary's answers to both.

    Attributes:
        lost, kept: sampled requests answered by the primary without and with a shadow score.
        score_shift: distance of the two mean primary scores, in standard deviations.
        score_shift_low: lower bound of it, not below 0.
        primary_loss_lost, primary_loss_kept: the primary's log loss on the labelled rows of each.
        differences: everything compared, the largest lower bound first.
    """

    lost: int
    kept: int
    score_shift: float | None
    score_shift_low: float | None
    primary_loss_lost: float | None
    primary_loss_kept: float | None
    differences: tuple[LostDifference, ...]


@dataclass(frozen=True)
class Agreement:
    """How often both roles decide alike at one threshold.

    Attributes:
        noise: share of requests the primary decides otherwise when asked twice; None when it was not.
    """

    threshold: float
    meaning: str
    rows: int
    agree: int
    only_primary_positive: int
    only_shadow_positive: int
    noise: float | None = None

    @property
    def disagreement(self) -> float:
        """Share of requests decided otherwise, beyond the primary's own noise."""
        return max(0.0, 1 - self.agree / self.rows - (self.noise or 0.0)) if self.rows else 0.0


@dataclass(frozen=True)
class Histogram:
    """Counts of both roles' scores between common edges."""

    edges: tuple[float, ...]
    primary: tuple[int, ...]
    shadow: tuple[int, ...]


@dataclass(frozen=True)
class ScoreShift:
    """Both roles' scores on the same requests.

    Attributes:
        wasserstein: distance of the two distributions in standard deviations of the primary's score.
    """

    rows: int
    mean_primary: float
    mean_shadow: float
    psi: float
    ks: float
    ks_p_value: float
    wasserstein: float
    rank_correlation: float
    histogram: Histogram


@dataclass(frozen=True)
class Latency:
    """Percentiles of one kind of call, in milliseconds."""

    name: str
    calls: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class PairedLatency:
    """The shadow's milliseconds minus the primary's on the same requests, and their ratio.

    Attributes:
        rows: requests for which both are known.
        single: whether only shadow calls of one request count; else the shadow's time is its whole batch's.
        p50, p95, p99: percentiles of the difference in milliseconds.
        ratio, ratio_low, ratio_high: geometric mean of shadow over primary, with an interval that holds at all times.
    """

    rows: int
    single: bool
    p50: float
    p95: float
    p99: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class Disagreement:
    """One request on which the two roles are far apart."""

    request_id: str
    at: datetime
    primary: float
    shadow: float
    label: float | None
    vector: dict[str, Any]


@dataclass(frozen=True)
class ClockSkew:
    """What the logs date later than the clock says it is.

    Attributes:
        predictions: requests taken in later than that; left out while they are few, believed where they are most.
        labels: labels that became known later than that; they count.
        furthest_s: how far ahead the latest of both is, in seconds.
    """

    predictions: int = 0
    labels: int = 0
    furthest_s: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """Everything one comparison found.

    Attributes:
        primary, shadow: the two models it is about.
        opened: the campaign's first prediction.
        as_of: the moment the evidence was gathered, by the clock.
        contract: digest of the features' contract.
        positive: what a label of 1 means.
        span: first and last prediction.
        predictions: predictions in the campaign.
        other_versions: predictions set aside because another pair of models was at work.
        service_versions: versions of the service that answered, with counts.
        roles, confidences, fallback_reasons: predictions by who answered and how.
        performance: None without a single mature labelled pair.
        failures: how often each role failed to answer.
        noise: the primary against itself; None where it was not asked twice.
        freshness: the results by what the vectors were like: fresh, stale, fallback.
        clock: what the logs date into the future.
        redacted: by declared slice, predictions whose value of it the log does not hold.
        rehearsal: how the shadow's scores came from the log; None when it answered beside live requests.
        slot: where the shadow rehearses.
        standing: what the campaign's record adds; None where none is kept.
    """

    primary: Version
    shadow: Version
    opened: datetime
    as_of: datetime
    contract: str
    positive: str
    span: Span
    predictions: int
    other_versions: dict[str, int]
    service_versions: dict[str, int]
    roles: dict[str, int]
    confidences: dict[str, int]
    fallback_reasons: dict[str, int]
    ledger: Ledger
    lost_traffic: LostTraffic
    agreement: tuple[Agreement, ...]
    scores: ScoreShift | None
    latency: tuple[Latency, ...]
    paired_latency: PairedLatency | None
    largest_batch: int | None
    label_coverage: LabelCoverage
    performance: Performance | None
    disagreements: tuple[Disagreement, ...]
    notes: Notes
    failures: tuple[FailureRate, ...] = ()
    noise: NoiseFloor | None = None
    freshness: tuple[Freshness, ...] = ()
    clock: ClockSkew = ClockSkew()
    rehearsal: Rehearsal | None = None
    slot: str = FIRST
    standing: Standing | None = None
    redacted: Mapping[str, int] = field(default_factory=dict)

    @property
    def offline(self) -> bool:
        """Whether the shadow was asked afterwards, on logged vectors."""
        return self.rehearsal is not None

    @property
    def campaign(self) -> str:
        """Name of the campaign: the same for the same two models, contract and opening, at every look."""
        parts = [self.primary.digest, self.shadow.digest, self.contract, self.opened.isoformat()]
        parts += ["offline"] if self.offline else []
        parts += [self.slot] if self.slot != FIRST else []
        return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:16]

    @property
    def days(self) -> float:
        """Clock time since the campaign opened, in days; of a rehearsal, the time its rows span."""
        return ((self.span.end if self.offline else self.as_of) - self.opened) / timedelta(days=1)

    @property
    def digest(self) -> str:
        """SHA-256 over every number in it."""
        return digest(self)


def digest(record: Any) -> str:
    """SHA-256 over a frozen record of plain values."""
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True, default=str).encode()).hexdigest()
