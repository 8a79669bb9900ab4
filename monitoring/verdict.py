"""Decides: evidence and criteria in, one frozen verdict out. Not enough evidence is ``hold``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from monitoring.criteria import Criteria, Criterion, default_criteria
from monitoring.evidence import Evidence, Version, digest
from monitoring.measures import MEASURES

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
        detail: what the value is about, where it is one of several.
        link: section of the page that shows its evidence.
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
    detail: str
    link: str


@dataclass(frozen=True)
class Verdict:
    """A decision about exactly these two models, with every reason, the decisive ones first.

    Attributes:
        contract: digest of the features' contract both were judged under.
        service_versions: of the service that answered in the campaign.
        campaign, opened: name and first prediction of the campaign.
        evidence: digest of the evidence.
        criteria: digest of the criteria.
        decided_at, expires_at: by the clock; from the second on it is no longer current.
    """

    decision: Decision
    reasons: tuple[Reason, ...]
    primary: Version
    shadow: Version
    contract: str
    service_versions: tuple[str, ...]
    campaign: str
    opened: datetime
    evidence: str
    criteria: str
    decided_at: datetime
    expires_at: datetime

    @property
    def deciding(self) -> tuple[Reason, ...]:
        """The reasons the decision follows from."""
        return tuple(reason for reason in self.reasons if reason.decisive)

    @property
    def digest(self) -> str:
        """SHA-256 over the whole verdict, by which a record of promotion names it."""
        return digest(self)


@dataclass(frozen=True)
class _Judged:
    item: Criterion
    outcome: Outcome
    value: float | None
    message: str
    detail: str

    @property
    def blocks(self) -> bool:
        return self.outcome == "fail" or (self.outcome == "no_data" and self.item.must_have_data)

    @property
    def rejects(self) -> bool:
        return self.item.critical and self.outcome == "fail"


def decide(evidence: Evidence, criteria: Criteria | None = None) -> Verdict:
    """Judge the shadow.

    Raises:
        KeyError: when a criterion names an unknown measure.
    """
    criteria = criteria or default_criteria()
    judged = [_judge(evidence, item) for item in criteria.items]
    if any(each.rejects for each in judged):
        decision: Decision = "reject"
    elif any(each.blocks for each in judged):
        decision = "hold"
    else:
        decision = "promote"
    order = {"fail": 0, "no_data": 1, "pass": 2}
    reasons = [_reason(each, decision) for each in judged]
    reasons.sort(key=lambda reason: (not reason.decisive, order[reason.outcome]))
    return Verdict(
        decision=decision,
        reasons=tuple(reasons),
        primary=evidence.primary,
        shadow=evidence.shadow,
        contract=evidence.contract,
        service_versions=tuple(sorted(evidence.service_versions)),
        campaign=evidence.campaign,
        opened=evidence.opened,
        evidence=evidence.digest,
        criteria=criteria.digest,
        decided_at=evidence.as_of,
        expires_at=evidence.as_of + timedelta(days=criteria.valid_days),
    )


def _judge(evidence: Evidence, item: Criterion) -> _Judged:
    measure = MEASURES[item.name]
    measured = measure.read(evidence)
    limit = f"{_WORDS[item.direction]} {format(item.limit, measure.style)}"
    if measured.value is None or measured.rows < item.minimum:
        least = f", needs {item.minimum:,}" if measured.rows < item.minimum else ""
        message = f"{measure.title}: cannot be said yet ({measured.rows:,} {measure.rows_are}{least})"
        return _Judged(item, "no_data", measured.value, message, measured.detail)
    about = f", {measured.detail}" if measured.detail else ""
    value = f"{measure.title}: {format(measured.value, measure.style)} ({limit}{about})"
    if item.holds(measured.value):
        return _Judged(item, "pass", measured.value, value, measured.detail)
    return _Judged(item, "fail", measured.value, f"{value}: {measure.finding}; {measure.advice}", measured.detail)


def _reason(each: _Judged, decision: Decision) -> Reason:
    item, measure = each.item, MEASURES[each.item.name]
    return Reason(
        criterion=item.name,
        title=measure.title,
        outcome=each.outcome,
        critical=item.critical,
        decisive=_decides(decision, each),
        value=each.value,
        limit=item.limit,
        direction=_WORDS[item.direction],
        message=each.message,
        detail=each.detail,
        link=f"compare.html#{measure.section}",
    )


def _decides(decision: Decision, each: _Judged) -> bool:
    if decision == "promote":
        return each.item.kind == "improvement"
    return each.rejects if decision == "reject" else each.blocks
