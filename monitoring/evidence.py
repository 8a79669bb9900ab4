"""What a comparison found: frozen records of plain numbers, enough for the verdict, the page and the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.pairing import Notes
from monitoring.statistics import Difference, Discordance


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
class LostTraffic:
    """Whether the requests the shadow lost differ from those it kept, by the primary's answers to both.

    Attributes:
        lost, kept: sampled requests answered by the primary without and with a shadow score.
        score_shift: distance of the two mean primary scores, in standard deviations.
        score_shift_low: lower 95 % bound of it, not below 0.
        primary_loss_lost, primary_loss_kept: the primary's log loss on the labelled rows of each.
    """

    lost: int
    kept: int
    score_shift: float | None
    score_shift_low: float | None
    primary_loss_lost: float | None
    primary_loss_kept: float | None


@dataclass(frozen=True)
class Agreement:
    """How often both roles decide alike at one threshold."""

    threshold: float
    meaning: str
    rows: int
    agree: int
    only_primary_positive: int
    only_shadow_positive: int


@dataclass(frozen=True)
class Histogram:
    """Counts of both roles' scores between common edges."""

    edges: tuple[float, ...]
    primary: tuple[int, ...]
    shadow: tuple[int, ...]


@dataclass(frozen=True)
class ScoreShift:
    """Both roles' scores on the same requests."""

    rows: int
    mean_primary: float
    mean_shadow: float
    psi: float
    ks: float
    ks_p_value: float
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
class Metric:
    """One quality measure of both roles on the same labelled rows."""

    name: str
    title: str
    higher_is_better: bool
    primary: float
    shadow: float
    difference: Difference


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of one role whose scores fall in one bin."""

    role: str
    mean_score: float
    positive_share: float
    rows: int


@dataclass(frozen=True)
class RunningPoint:
    """The paired log-loss difference over everything up to the end of one block."""

    at: datetime
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Slice:
    """The paired log-loss difference within one value of one column.

    ``low``/``high`` of ``difference`` hold for this slice alone; ``joint_low``/``joint_high`` hold for all slices at
    once (Bonferroni).
    """

    column: str
    value: str
    positive_share: float
    difference: Difference
    joint_low: float | None
    joint_high: float | None


@dataclass(frozen=True)
class Performance:
    """Quality on mature labelled rows that the primary answered and the shadow scored."""

    rows: int
    blocks: int
    positive_share: float
    metrics: tuple[Metric, ...]
    decisions: tuple[tuple[float, Discordance], ...]
    calibration: tuple[CalibrationBin, ...]
    running: tuple[RunningPoint, ...]
    slices: tuple[Slice, ...]
    slices_too_small: int

    def metric(self, name: str) -> Metric | None:
        """Return one measure, or None when it could not be taken."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class LabelCoverage:
    """How many of the predictions old enough to have a label have one."""

    maturity_hours: float
    mature: int
    labelled: int
    immature: int

    @property
    def rate(self) -> float | None:
        """Share of mature predictions labelled; None when none is mature."""
        return self.labelled / self.mature if self.mature else None


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
class Evidence:
    """Everything one comparison found.

    Attributes:
        primary, shadow: the two models it is about.
        positive: what a label of 1 means.
        span: first and last prediction.
        predictions: predictions in the campaign.
        other_versions: predictions set aside because another pair of models was at work.
        service_versions: versions of the service that answered, with counts.
        roles, confidences, fallback_reasons: predictions by who answered and how.
        performance: None without a single mature labelled pair.
    """

    primary: Version
    shadow: Version
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
    largest_batch: int | None
    label_coverage: LabelCoverage
    performance: Performance | None
    disagreements: tuple[Disagreement, ...]
    notes: Notes
