"""What a shadow must show before it is promoted: each criterion with its direction, limit and least data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from monitoring.evidence import Evidence, Latency
from monitoring.statistics import Difference

Direction = Literal["at_least", "at_most", "above"]
Kind = Literal["evidence", "guardrail", "harm", "improvement"]

# Below this many milliseconds two calls on a shared machine differ by scheduling, not by model.
LATENCY_SLACK_MS = 2.0
_LEAST_CALLS = 200


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
    """All conditions of a verdict; among failures of one weight the first listed is named first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[Criterion, ...]


@dataclass(frozen=True)
class Measured:
    """A value and the number of rows it rests on; None when it cannot be taken."""

    value: float | None
    rows: int


@dataclass(frozen=True)
class Measure:
    """How a criterion's value is read from the evidence and put in words.

    Attributes:
        title: what it is, for people.
        read: takes it from the evidence.
        style: format of value and limit, as for :func:`format`.
        rows_are: what its rows are called.
        finding: what its failure means, as a clause about the shadow.
        advice: what to do then.
    """

    title: str
    read: Callable[[Evidence], Measured]
    style: str
    rows_are: str
    finding: str
    advice: str


def default_criteria() -> Criteria:
    """The criteria used unless others are given."""

    def rule(name: str, kind: Kind, direction: Direction, limit: float, minimum: int = 0, **more: bool) -> Criterion:
        return Criterion(name=name, kind=kind, direction=direction, limit=limit, minimum=minimum, **more)

    return Criteria(
        items=(
            rule("invalid_outputs", "harm", "at_most", 0.001, 200, critical=True),
            rule("log_loss_harm", "harm", "at_least", -0.002, 500, critical=True),
            rule("auc_harm", "harm", "at_most", 0.01, 500, critical=True),
            rule("paired_rows", "evidence", "at_least", 2000),
            rule("blocks", "evidence", "at_least", 7),
            rule("label_coverage", "evidence", "at_least", 0.8, 1),
            rule("lost_rows_differ", "evidence", "at_most", 0.2, 30, must_have_data=False),
            rule("shadow_errors", "guardrail", "at_most", 0.01, 200),
            rule("unaccounted", "evidence", "at_most", 0.001, 200),
            rule("coverage", "evidence", "at_least", 0.95, 1),
            rule("latency", "guardrail", "at_most", 1.5, _LEAST_CALLS),
            rule("score_correlation", "guardrail", "at_least", 0.3, 200),
            rule("slice_harm", "guardrail", "at_least", -0.002, 1, must_have_data=False),
            rule("calibration_harm", "guardrail", "at_least", -0.02, 500),
            rule("log_loss_gain", "improvement", "above", 0.0, 500),
            rule("auc_margin", "guardrail", "at_most", 0.01, 500),
        )
    )


def _rate(*reasons: str) -> Callable[[Evidence], Measured]:
    return lambda evidence: Measured(evidence.ledger.rate(*reasons), evidence.ledger.sampled)


def _unaccounted(evidence: Evidence) -> Measured:
    ledger = evidence.ledger
    return Measured(ledger.unaccounted / ledger.sampled if ledger.sampled else None, ledger.sampled)


def _bound(metric: str, pick: Callable[[Difference], float | None]) -> Callable[[Evidence], Measured]:
    def read(evidence: Evidence) -> Measured:
        found = evidence.performance.metric(metric) if evidence.performance else None
        return Measured(pick(found.difference), found.difference.rows) if found else Measured(None, 0)

    return read


def _latency(evidence: Evidence) -> Measured:
    """Ratio of the p95s beyond the slack; on shadow calls of a single row where there are enough of them."""
    calls = {entry.name: entry for entry in evidence.latency}
    primary, shadow = calls.get("primary"), like_for_like(calls)
    if primary is None or shadow is None or primary.p95 <= 0:
        return Measured(None, 0)
    beyond = max(0.0, shadow.p95 - LATENCY_SLACK_MS) / primary.p95
    return Measured(beyond, min(primary.calls, shadow.calls))


def like_for_like(calls: dict[str, Latency]) -> Latency | None:
    """The shadow calls to hold against the primary's."""
    single = calls.get("shadow_single")
    return single if single is not None and single.calls >= _LEAST_CALLS else calls.get("shadow")


def _slice_harm(evidence: Evidence) -> Measured:
    slices = evidence.performance.slices if evidence.performance else ()
    known = [(entry.joint_high, entry.difference.rows) for entry in slices if entry.joint_high is not None]
    worst = min(known, default=None)
    return Measured(*worst) if worst else Measured(None, 0)


MEASURES: dict[str, Measure] = {
    "invalid_outputs": Measure(
        "Invalid outputs of the shadow, share of sampled requests",
        _rate("invalid_output"), ".2%", "sampled requests",
        "the shadow gives answers that are not probabilities",
        "find the inputs it cannot score and train again",
    ),
    "log_loss_harm": Measure(
        "Log-loss gain, upper bound of the interval",
        _bound("log_loss", lambda d: d.high), "+.4f", "labelled pairs",
        "the shadow's probabilities are clearly worse",
        "train another",
    ),
    "auc_harm": Measure(
        "AUC lost, lower bound of the interval",
        _bound("auc", lambda d: d.low), "+.4f", "labelled pairs",
        "the shadow ranks clearly worse",
        "train another",
    ),
    "paired_rows": Measure(
        "Requests with both scores and a mature label",
        lambda e: Measured(float(e.performance.rows), e.performance.rows) if e.performance else Measured(0.0, 0),
        ",.0f", "labelled pairs", "too few requests have both scores and a label",
        "let the shadow run on, or deliver the labels",
    ),
    "blocks": Measure(
        "Independent blocks of time with labels",
        lambda e: Measured(float(e.performance.blocks), e.performance.rows) if e.performance else Measured(0.0, 0),
        ",.0f", "labelled pairs", "the labels span too short a time",
        "let the shadow run on: rows of one block say little about the next",
    ),
    "label_coverage": Measure(
        "Mature predictions with a label",
        lambda e: Measured(e.label_coverage.rate, e.label_coverage.mature), ".1%", "mature predictions",
        "too many labels are missing",
        "find out why labels are missing: those that arrive may not be like the rest",
    ),
    "lost_rows_differ": Measure(
        "Distance of lost from kept requests in standard deviations of the primary's score, lower bound",
        lambda e: Measured(e.lost_traffic.score_shift_low, e.lost_traffic.lost), ".2f", "lost requests",
        "the requests the shadow lost are not like those it scored",
        "stop the losses and run on",
    ),
    "shadow_errors": Measure(
        "Errors and timeouts of the shadow, share of sampled requests",
        _rate("error", "timeout"), ".2%", "sampled requests", "the shadow fails too often",
        "read the shadow runner's log",
    ),
    "unaccounted": Measure(
        "Sampled requests without a shadow record", _unaccounted, ".2%", "sampled requests",
        "sampled requests are missing from the shadow log",
        "look for killed processes or a full disk in the campaign",
    ),
    "coverage": Measure(
        "Sampled requests the shadow scored",
        lambda e: Measured(e.ledger.coverage, e.ledger.sampled), ".1%", "sampled requests",
        "the shadow scored too few of its requests",
        "give the shadow more room (queue, batch, timeout) and run on",
    ),
    "latency": Measure(
        f"Shadow's p95 latency over the primary's, the first {LATENCY_SLACK_MS:g} ms free",
        _latency, ".2f", "calls", "the shadow is too slow",
        "make the model smaller, or give its runner more room",
    ),
    "score_correlation": Measure(
        "Rank correlation of both scores",
        lambda e: Measured(e.scores.rank_correlation, e.scores.rows) if e.scores else Measured(None, 0),
        ".2f", "pairs", "the shadow's scores hardly resemble the primary's",
        "check the encoding of its inputs",
    ),
    "slice_harm": Measure(
        "Log-loss gain in the worst slice, upper bound over all slices at once",
        _slice_harm, "+.4f", "labelled pairs", "the shadow is clearly worse for some slice",
        "see the slices: those requests would be served worse",
    ),
    "calibration_harm": Measure(
        "Calibration gain, primary's error minus the shadow's",
        _bound("ece", lambda d: d.value), "+.4f", "labelled pairs",
        "the shadow's probabilities are off",
        "calibrate it",
    ),
    "log_loss_gain": Measure(
        "Log-loss gain, lower bound of the interval",
        _bound("log_loss", lambda d: d.low), "+.4f", "labelled pairs",
        "there is no evidence that the shadow is better",
        "run on, or train a better one",
    ),
    "auc_margin": Measure(
        "AUC lost, upper bound of the interval",
        _bound("auc", lambda d: d.high), "+.4f", "labelled pairs",
        "a loss in ranking cannot be ruled out",
        "run on",
    ),
}  # fmt: skip
