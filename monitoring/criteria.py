"""What a shadow must show before it is promoted: each criterion with its direction, limit and least data."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from monitoring.plan import Plan
from service.settings import Settings

Direction = Literal["at_least", "at_most", "above"]
Kind = Literal["evidence", "guardrail", "harm", "improvement"]


class Criterion(BaseModel):
    """One condition.

    A failed critical criterion rejects, any other failed one holds. Without its least data a criterion has no
    outcome; then it holds when ``must_have_data``, and is only reported otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of a measure in `MEASURES`.")
    kind: Kind = Field(description="What the condition is for.")
    direction: Direction = Field(description="On which side of the limit the value must be.")
    limit: float
    minimum: int = Field(0, ge=0, description="Rows (or calls) below which the value says nothing.")
    critical: bool = Field(False, description="Whether failing it rejects the shadow.")
    must_have_data: bool = Field(True, description="Whether the verdict must wait for its data.")

    def holds(self, value: float) -> bool:
        """Whether a value satisfies the condition."""
        if self.direction == "above":
            return value > self.limit
        return value >= self.limit if self.direction == "at_least" else value <= self.limit


class Criteria(BaseModel):
    """Everything a verdict is judged by, declared before the campaign opens.

    Among failures of one weight the first listed is named first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[Criterion, ...]
    plan: Plan = Field(Plan(), description="What is tested and how.")
    valid_days: float = Field(7.0, gt=0, description="Days of clock time after which a verdict is no longer current.")

    @property
    def digest(self) -> str:
        """SHA-256 over every condition: equal digests mean judged alike."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def default_criteria(min_days: float = 7, min_rows: int = 2000, min_labels: float = 0.8) -> Criteria:
    """The criteria used unless others are given.

    Args:
        min_days: fewest days of the clock, and whole days with labels.
        min_rows: fewest labelled pairs.
        min_labels: least share of old enough predictions that have a label.
    """

    def rule(name: str, kind: Kind, direction: Direction, limit: float, minimum: int = 0, **more: bool) -> Criterion:
        return Criterion(name=name, kind=kind, direction=direction, limit=limit, minimum=minimum, **more)

    return Criteria(
        items=(
            rule("invalid_outputs", "harm", "at_most", 0.001, 200, critical=True),
            rule("auc_harm", "harm", "at_most", 0.01, 500, critical=True),
            rule("overconfidence", "harm", "at_most", 0.2, 500, critical=True),
            rule("log_loss_harm", "harm", "at_least", -0.002, 500, critical=True),
            rule("slice_harm", "harm", "at_most", 0, 1, critical=True, must_have_data=False),
            rule("lost_rows_differ", "evidence", "at_most", 0.2, 30, must_have_data=False),
            rule("too_good", "evidence", "at_least", 0.5, 500, must_have_data=False),
            rule("gain_fades", "evidence", "at_least", -0.005, 500, must_have_data=False),
            rule("duration", "evidence", "at_least", min_days),
            rule("paired_rows", "evidence", "at_least", min_rows),
            rule("blocks", "evidence", "at_least", min_days),
            rule("label_coverage", "evidence", "at_least", min_labels, 1),
            rule("shadow_errors", "guardrail", "at_most", 0.01, 200),
            rule("unaccounted", "evidence", "at_most", 0.001, 200),
            rule("coverage", "evidence", "at_least", 0.95, 1),
            rule("latency", "guardrail", "at_most", 1.5, 200),
            rule("score_correlation", "guardrail", "at_least", 0.3, 200),
            rule("disagreement", "guardrail", "at_most", 0.2, 200),
            rule("calibration_harm", "guardrail", "at_least", -0.02, 500),
            rule("accuracy_harm", "guardrail", "at_most", 0.005, 500),
            rule("gain", "improvement", "at_least", 20, 500),
            rule("log_loss_margin", "guardrail", "at_least", -0.002, 500),
            rule("auc_margin", "guardrail", "at_most", 0.01, 500),
        )
    )


def declared_criteria(own: Settings, block: timedelta) -> Criteria:
    """The criteria that the settings declare, for rows that depend on each other within ``block``."""
    criteria = default_criteria(own.campaign_min_days, own.campaign_min_rows, own.campaign_min_labels)
    return criteria.model_copy(update={"plan": replace(criteria.plan, block=block)})
