"""Decides: evidence and criteria in, one frozen verdict out. Not enough evidence is ``hold``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring.criteria import MEASURES, Criteria, Criterion, default_criteria
from monitoring.evidence import Evidence, Version

Decision = Literal["promote", "hold", "reject"]
Outcome = Literal["pass", "fail", "no_data"]

_WORDS = {"at_least": "at least", "at_most": "at most", "above": "above"}


@dataclass(frozen=True)
class Reason:
    """One criterion's outcome.

    Attributes:
        criterion, title: its name, and what it measures.
        outcome: ``no_data`` when it rests on too little to say.
        critical: whether failing it rejects.
        decisive: whether the decision follows from it.
        value: what was measured; None when nothing could be.
        limit: the criterion's limit; ``direction`` says on which side the value must be.
        message: value, limit and, unless it passed, what to do.
    """

    criterion: str
    title: str
    outcome: Outcome
    critical: bool
    decisive: bool
    value: float | None
    limit: float
    direction: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """A decision about exactly these two models, with every reason, the decisive ones first."""

    decision: Decision
    reasons: tuple[Reason, ...]
    primary: Version
    shadow: Version

    @property
    def deciding(self) -> tuple[Reason, ...]:
        """The reasons the decision follows from."""
        return tuple(reason for reason in self.reasons if reason.decisive)


def decide(evidence: Evidence, criteria: Criteria | None = None) -> Verdict:
    """Judge the shadow.

    Raises:
        KeyError: when a criterion names an unknown measure.
    """
    judged = [_judge(evidence, item) for item in (criteria or default_criteria()).items]
    if any(outcome == "fail" and item.critical for item, outcome, _, _ in judged):
        decision: Decision = "reject"
    elif any(_blocks(item, outcome) for item, outcome, _, _ in judged):
        decision = "hold"
    else:
        decision = "promote"
    reasons = [
        Reason(
            criterion=item.name,
            title=MEASURES[item.name].title,
            outcome=outcome,
            critical=item.critical,
            decisive=_decides(decision, item, outcome),
            value=value,
            limit=item.limit,
            direction=_WORDS[item.direction],
            message=message,
        )
        for item, outcome, value, message in judged
    ]
    order = {"fail": 0, "no_data": 1, "pass": 2}
    reasons.sort(key=lambda reason: (not reason.decisive, order[reason.outcome]))
    return Verdict(decision, tuple(reasons), evidence.primary, evidence.shadow)


def _judge(evidence: Evidence, item: Criterion) -> tuple[Criterion, Outcome, float | None, str]:
    measure = MEASURES[item.name]
    measured = measure.read(evidence)
    limit = f"{_WORDS[item.direction]} {format(item.limit, measure.style)}"
    if measured.value is None or measured.rows < item.minimum:
        least = f", needs {item.minimum:,}" if measured.rows < item.minimum else ""
        message = f"{measure.title}: cannot be said yet ({measured.rows:,} {measure.rows_are}{least})"
        return item, "no_data", measured.value, message
    value = f"{measure.title}: {format(measured.value, measure.style)} ({limit})"
    if item.holds(measured.value):
        return item, "pass", measured.value, value
    return item, "fail", measured.value, f"{value}: {measure.finding}; {measure.advice}"


def _blocks(item: Criterion, outcome: Outcome) -> bool:
    return outcome == "fail" or (outcome == "no_data" and item.must_have_data)


def _decides(decision: Decision, item: Criterion, outcome: Outcome) -> bool:
    if decision == "promote":
        return item.kind == "improvement"
    if decision == "reject":
        return item.critical and outcome == "fail"
    return _blocks(item, outcome)
