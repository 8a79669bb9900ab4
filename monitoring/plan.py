"""What a campaign tests and how, declared before it opens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Plan:
    """What is tested and how, declared before the campaign.

    Attributes:
        block: stretch of time within which rows are taken to depend on each other.
        confidence: of every interval.
        minimum_slice: rows below which a slice is only counted.
        threshold: score above which a decision is positive.
        decisions_stake: share of the error budget on the gain in decisions; the rest is on log loss.
        slice_margin: loss in nats a slice may bear.
        slice_discovery_rate: share of false ones among the slices called harmed.
    """

    block: timedelta = timedelta(days=1)
    confidence: float = 0.95
    minimum_slice: int = 200
    threshold: float = 0.5
    decisions_stake: float = 0.85
    slice_margin: float = 0.002
    slice_discovery_rate: float = 0.05
