"""Decides: evidence and criteria in, one frozen verdict out. Not enough evidence is ``hold``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from monitoring.criteria import Criteria, Criterion, default_criteria
from monitoring.evidence import Evidence, Version, digest
from monitoring.measures import LIVE_ONLY, MEASURES
from monitoring.standing import Standing

Decision = Literal["promote", "hold", "reject"]
Outcome = Literal["pass", "fail", "no_data"]

_WORDS = {"at_least": "at least", "at_most": "at most", "above": "above"}
# Judged of every rehearsal, whatever the criteria: offline evidence may reject, but never promote.
_OFFLINE = Criterion(name="offline", kind="evidence", direction="at_most", limit=0)
# Judged of every campaign on record: other criteria than the declared ones decide nothing.
_DECLARED = Criterion(name="declared", kind="evidence", direction="at_most", limit=0)


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
        offline: whether it rests on logged values scored afterwards; then it is never ``promote``.
        would_be: what it would be on what such rows can show; None unless offline.
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
    offline: bool = False
    would_be: Decision | None = None

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


def decide(evidence: Evidence, criteria: Criteria | None = None, page: str = "compare.html") -> Verdict:
    """Judge the shadow.

    Args:
        page: file name of the page the reasons link to.

    Raises:
        KeyError: when a criterion names an unknown measure.
    """
    criteria = criteria or default_criteria()
    judged = [_judge(evidence, item) for item in criteria.items]
    found = _decision(judged)
    decision = found
    if evidence.offline:
        judged.insert(0, _judge(evidence, _OFFLINE))
        decision = "reject" if found == "reject" else "hold"
    if evidence.standing is not None:
        decision, record = _by_record(evidence, evidence.standing, decision)
        judged[:0] = record
    order = {"fail": 0, "no_data": 1, "pass": 2}
    reasons = [_reason(each, decision, page) for each in judged]
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
        offline=evidence.offline,
        would_be=found if evidence.offline else None,
    )


def _decision(judged: Sequence[_Judged]) -> Decision:
    if any(each.rejects for each in judged):
        return "reject"
    return "hold" if any(each.blocks for each in judged) else "promote"


def _by_record(evidence: Evidence, record: Standing, decision: Decision) -> tuple[Decision, list[_Judged]]:
    """Hold what is judged by undeclared criteria, and what would be promoted after it expired."""
    declared = _judge(evidence, _DECLARED)
    if record.most_days is None:
        return "hold" if declared.blocks else decision, [declared]
    limit = Criterion(name="age", kind="evidence", direction="at_most", limit=record.most_days)
    age = _judge(evidence, limit)
    holds = declared.blocks or (age.blocks and decision != "reject")
    return "hold" if holds else decision, [declared, age]


def _judge(evidence: Evidence, item: Criterion) -> _Judged:
    measure = MEASURES[item.name]
    if evidence.offline and item.name in LIVE_ONLY:
        said = f"{measure.title}: replayed rows cannot show it"
        return _Judged(item.model_copy(update={"must_have_data": False}), "no_data", None, said, "")
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


def _reason(each: _Judged, decision: Decision, page: str) -> Reason:
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
        link=f"{page}#{measure.section}",
    )


def _decides(decision: Decision, each: _Judged) -> bool:
    if decision == "promote":
        return each.item.kind == "improvement"
    return each.rejects if decision == "reject" else each.blocks
