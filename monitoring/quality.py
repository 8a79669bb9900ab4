"""What a comparison found about quality once the truth is known: frozen records of plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from monitoring.statistics import Difference, Discordance


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
class Gain:
    """The evidence that the shadow is better, as e-values; 20 is reached without a gain once in 20 campaigns.

    Attributes:
        log_loss, decisions: e-value of each test alone.
        combined: their average by the weights declared beforehand, what the verdict reads.
        row_level: of the decisions were rows independent; shown for comparison only.
        threshold: score above which a decision is positive.
    """

    log_loss: float
    decisions: float
    combined: float
    row_level: float
    threshold: float


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of one role whose scores fall in one bin."""

    role: str
    mean_score: float
    positive_share: float
    rows: int


@dataclass(frozen=True)
class RunningPoint:
    """The paired log-loss difference and the evidence for a gain over everything up to the end of one block."""

    at: datetime
    value: float
    low: float | None
    high: float | None
    e_value: float


@dataclass(frozen=True)
class Slice:
    """The paired log-loss difference within one value of one column.

    Attributes:
        difference: with the interval of this slice alone.
        joint_low, joint_high: bounds that hold for all slices at once (Bonferroni).
        harm: e-value against "the loss is within the margin".
        harmed: whether it is worse beyond the margin, with the false discovery rate over all slices controlled.
    """

    column: str
    value: str
    positive_share: float
    difference: Difference
    joint_low: float | None
    joint_high: float | None
    harm: float
    harmed: bool


@dataclass(frozen=True)
class Overconfidence:
    """How much too extreme each role's scores are: 1 minus the calibration slope, with the shadow's interval."""

    primary: float
    shadow: float
    shadow_low: float | None
    shadow_high: float | None


@dataclass(frozen=True)
class Fading:
    """Whether the gain lasts: its mean over the first and the last third of the blocks.

    Attributes:
        change_high: upper 99 % bound of last minus first (Welch's t over blocks, for one look).
    """

    first: float
    last: float
    change_high: float
    blocks: int


@dataclass(frozen=True)
class PairedMeasure:
    """One measure of whoever answered and of the shadow on the same labelled rows: ``log_loss, brier, accuracy``."""

    name: str
    higher_is_better: bool
    answered: float
    shadow: float
    difference: Difference


@dataclass(frozen=True)
class Freshness:
    """What was found on rows whose vectors were alike.

    Attributes:
        name: ``fresh``, ``stale`` or ``fallback``; ``meaning`` says which rows these are.
        rows: all of them in the campaign.
        pairs: of them with an answer and a valid shadow score.
        disagreement: share of pairs decided otherwise; None without pairs.
        noise: share the primary decides otherwise when asked twice; None when it was not.
        labelled: pairs with a mature label.
        measures: answer against shadow on those.
    """

    name: str
    meaning: str
    rows: int
    pairs: int
    disagreement: float | None
    noise: float | None
    labelled: int
    measures: tuple[PairedMeasure, ...]


@dataclass(frozen=True)
class Performance:
    """Quality on mature labelled rows that the primary answered and the shadow scored.

    Attributes:
        overall: AUC and calibration error of (primary, shadow) over all rows at once, which mix days.
    """

    rows: int
    blocks: int
    positive_share: float
    metrics: tuple[Metric, ...]
    overall: dict[str, tuple[float, float]]
    gain: Gain
    overconfidence: Overconfidence
    fading: Fading | None
    decisions: tuple[tuple[float, Discordance], ...]
    calibration: tuple[CalibrationBin, ...]
    running: tuple[RunningPoint, ...]
    slices: tuple[Slice, ...]
    slices_too_small: int

    def metric(self, name: str) -> Metric | None:
        """Return one measure, or None when it could not be taken."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def harmed(self) -> tuple[Slice, ...]:
        """Slices the shadow serves worse, the surest first."""
        return tuple(sorted((s for s in self.slices if s.harmed), key=lambda s: -s.harm))


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
