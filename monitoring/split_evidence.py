"""What a split found: frozen records of plain numbers, enough for the verdict, the page and the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring.evidence import Version, digest
from monitoring.split_arms import Guard
from service.split import Split


@dataclass(frozen=True)
class Stage:
    """A stretch of time with one share.

    Attributes:
        revision: of the split's file that set it.
        drawn: units that were drawn in it, of them ``treated``.
        counted: units whose outcome is known, of them ``counted_treated``.
        control, treatment: mean outcome of the arms; None while nobody counts.
    """

    revision: int
    share: float
    start: datetime
    end: datetime
    requests: int
    drawn: int
    treated: int
    counted: int
    counted_treated: int
    control: float | None
    treatment: float | None


@dataclass(frozen=True)
class Day:
    """Units that came on one day: the weighted mean difference of the two arms, None while one is empty."""

    day: datetime
    control: int
    treatment: int
    difference: float | None


@dataclass(frozen=True)
class Point:
    """How things stood after so many units."""

    at: datetime
    units: int
    gain: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SplitNotes:
    """Everything unusual in the logs, counted.

    Attributes:
        damaged_lines: lines that were not a whole record.
        duplicates: answers that repeat a request id; the first counts.
        keyless: requests whose key was null; no part of the split.
        foreign: answers of models the split is not about, left out.
        waiting: units whose outcome cannot be known yet.
        valueless: units whose outcome was due and did not come.
        values: what was found among the outcomes.
    """

    damaged_lines: int
    duplicates: int
    keyless: int
    foreign: int
    waiting: int
    valueless: int
    values: dict[str, int]


@dataclass(frozen=True)
class SplitEvidence:
    """Everything a split found.

    Attributes:
        metric, goal: what was compared, and whether more of it is better.
        declared: whether that was said before the split opened.
        gain, harm: e-values against "treatment makes nobody better" and "nobody worse".
        difference, low, high: treatment minus control, with an interval that holds at all looks at once.
        later: the difference among the later half of the units.
        sample_ratio: e-value against "units fall into the arms as they were drawn".
        wrong_arms: answers whose logged arm is not the one their draw gives.
        coverage: share of units due whose outcome came.
        coverage_differs: e-value against "outcomes go missing in both arms alike".
        exposure_differs: e-value against "keys ask as often in both arms"; None without a key.
    """

    split: Split
    control: Version
    treatment: Version
    contract: str
    service_versions: tuple[str, ...]
    as_of: datetime
    first: datetime
    last: datetime
    ended: datetime | None
    metric: str
    goal: str
    declared: bool
    requests: int
    drawn: int
    drawn_treated: int
    counted: int
    counted_treated: int
    control_mean: float | None
    treatment_mean: float | None
    difference: float | None
    low: float | None
    high: float | None
    later: float | None
    gain: float
    harm: float
    sample_ratio: float
    wrong_arms: int
    coverage: float | None
    coverage_differs: float
    exposure_differs: float | None
    stages: tuple[Stage, ...]
    days: tuple[Day, ...]
    path: tuple[Point, ...]
    guards: tuple[Guard, ...]
    failures: float | None
    latency_ratio: float | None
    notes: SplitNotes

    @property
    def days_open(self) -> float:
        """Clock time since the first treated share was set, in days; until its end once it has one."""
        return ((self.ended or self.as_of) - self.split.opened) / timedelta(days=1)

    @property
    def digest(self) -> str:
        """SHA-256 over every number in it."""
        return digest(self)
