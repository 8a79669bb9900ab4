"""Decides about a split: evidence in, the same frozen verdict out as for a shadow campaign. Pure.

First whether the numbers can be trusted at all (units in the arms they were drawn into, outcomes of both alike):
if not, nothing is decided. Then harm rejects, and what is missing holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from monitoring.criteria import Criterion, Direction, Kind
from monitoring.split_evidence import SplitEvidence
from monitoring.verdict import Decision, Outcome, Reason, Verdict

PROMOTES = 20.0
_WORDS: dict[Direction, str] = {"at_least": "at least", "at_most": "at most", "above": "above"}
_VALID_DAYS = 7.0
PAGE = "split.html"


@dataclass(frozen=True)
class SplitRule:
    """One condition of a split and how it is put in words.

    Attributes:
        read: value and the number of rows it rests on.
        doubts: whether failing it means that the other numbers cannot be trusted.
    """

    item: Criterion
    title: str
    section: str
    style: str
    rows_are: str
    finding: str
    advice: str
    read: Callable[[SplitEvidence], tuple[float | None, int]]
    doubts: bool = False


def _rule(
    name: str, kind: Kind, direction: Direction, limit: float, minimum: int = 0, *, critical: bool = False,
    needed: bool = True,
) -> Criterion:  # fmt: skip
    return Criterion(
        name=name, kind=kind, direction=direction, limit=limit, minimum=minimum, critical=critical,
        must_have_data=needed,
    )  # fmt: skip


def _smaller_arm(e: SplitEvidence) -> int:
    return min(e.counted_treated, e.counted - e.counted_treated)


def _toward(e: SplitEvidence, value: float | None) -> float | None:
    return None if value is None else value * (1.0 if e.goal == "higher" else -1.0)


RULES: tuple[SplitRule, ...] = (
    SplitRule(
        _rule("wrong_arms", "evidence", "at_most", 0), "Answers in another arm than drawn", "arms", ",.0f", "answers",
        "answers are logged in an arm they were not drawn into",
        "look for a gateway of another version or with another split file, mend it and begin a new split",
        lambda e: (float(e.wrong_arms), e.requests), doubts=True,
    ),
    SplitRule(
        _rule("sample_ratio", "evidence", "at_most", 100, 1), "Sample ratio mismatch (e-value)", "arms", ",.2f",
        "units drawn", "one arm has lost units: its size cannot be chance",
        "find where requests of one arm go missing (crashes, clients giving up, log drops) and begin a new split",
        lambda e: (e.sample_ratio, e.drawn), doubts=True,
    ),
    SplitRule(
        _rule("outcomes_missing", "evidence", "at_most", 100, 1, needed=False),
        "Outcomes missing more often in one arm (e-value)", "arms", ",.2f", "units due",
        "outcomes go missing more often in one arm", "find why; until then the arms that are left are not alike",
        lambda e: (e.coverage_differs, e.drawn - e.notes.waiting), doubts=True,
    ),
    SplitRule(
        _rule("harm", "harm", "at_most", PROMOTES, critical=True), "Evidence for harm (e-value)", "effect", ",.2f",
        "units with an outcome", "treatment makes the outcome worse", "end the split: `make split SHARE=0`",
        lambda e: (e.harm, e.counted),
    ),
    SplitRule(
        _rule("failures", "guardrail", "at_most", 0.01, 200), "Failed answers, treatment beyond control", "arms", ".2%",
        "treated answers", "the treated model fails to answer more often",
        "look at its fallback reasons in the log; the treated are then answered by the primary",
        lambda e: (e.failures, e.guards[1].requests),
    ),
    SplitRule(
        _rule("latency", "guardrail", "at_most", 1.5, 100), "Latency p95, treatment over control", "arms", ".2f",
        "treated answers", "the treated wait longer", "make the model faster, or its process less busy",
        lambda e: (e.latency_ratio, e.guards[1].requests),
    ),
    SplitRule(
        _rule("duration", "evidence", "at_least", 7), "Days since it opened", "effect", ".1f", "days",
        "it has not run long enough", "wait: weekdays differ, and novelty wears off",
        lambda e: (e.days_open, e.requests),
    ),
    SplitRule(
        _rule("units", "evidence", "at_least", 200), "Units with an outcome in the smaller arm", "effect", ",.0f",
        "units", "too few units of one arm have an outcome", "wait, or raise the share",
        lambda e: (float(_smaller_arm(e)), e.counted),
    ),
    SplitRule(
        _rule("coverage", "evidence", "at_least", 0.8, 1), "Units due whose outcome came", "arms", ".1%", "units due",
        "many outcomes have not come", "deliver them, or raise the maturity",
        lambda e: (e.coverage, e.drawn - e.notes.waiting),
    ),
    SplitRule(
        _rule("declared", "evidence", "at_least", 1), "Outcome declared when it opened", "effect", ".0f", "outcomes",
        "this outcome or its direction was not declared when the split opened",
        "judge by the declared one; begin a new split to test this one",
        lambda e: (float(e.declared), e.requests),
    ),
    SplitRule(
        _rule("gain", "improvement", "at_least", PROMOTES, 1), "Evidence for a gain (e-value)", "effect", ",.2f",
        "units with an outcome", "there is no evidence that treatment makes the outcome better",
        "wait, or raise the share",
        lambda e: (e.gain, e.counted),
    ),
    SplitRule(
        _rule("lasting", "guardrail", "at_least", 0, 50, needed=False), "Gain among the later half of units", "days",
        "+.4f", "units with an outcome", "the gain is gone among those who came later", "wait: it may be novelty",
        # Only a gain can fade.
        lambda e: (_toward(e, e.later) if e.gain >= PROMOTES else None, e.counted),
    ),
)  # fmt: skip


def criteria_digest(rules: tuple[SplitRule, ...] = RULES) -> str:
    """SHA-256 over every condition: equal digests mean judged alike."""
    return hashlib.sha256(json.dumps([rule.item.model_dump() for rule in rules]).encode()).hexdigest()


@dataclass(frozen=True)
class _Judged:
    rule: SplitRule
    outcome: Outcome
    value: float | None
    message: str

    @property
    def blocks(self) -> bool:
        return self.outcome == "fail" or (self.outcome == "no_data" and self.rule.item.must_have_data)


def decide(evidence: SplitEvidence, rules: tuple[SplitRule, ...] = RULES) -> Verdict:
    """Judge the treatment."""
    judged = [_judge(evidence, rule) for rule in rules]
    doubted = any(each.rule.doubts and each.outcome == "fail" for each in judged)
    harmed = any(each.rule.item.critical and each.outcome == "fail" for each in judged)
    decision: Decision = "promote"
    if doubted or any(each.blocks for each in judged):
        decision = "hold"
    if harmed and not doubted:
        decision = "reject"
    order = {"fail": 0, "no_data": 1, "pass": 2}
    reasons = [_reason(each, decision) for each in judged]
    reasons.sort(key=lambda reason: (not reason.decisive, order[reason.outcome]))
    return Verdict(
        decision=decision,
        reasons=tuple(reasons),
        primary=evidence.control,
        shadow=evidence.treatment,
        contract=evidence.contract,
        service_versions=evidence.service_versions,
        campaign=evidence.split.name,
        opened=evidence.split.opened,
        evidence=evidence.digest,
        criteria=criteria_digest(rules),
        decided_at=evidence.as_of,
        expires_at=evidence.as_of + timedelta(days=_VALID_DAYS),
    )


# What needs no outcome, and what must not be under a share that is to be raised.
ARMS = ("wrong_arms", "sample_ratio", "failures", "latency")
STOPS = (*ARMS, "outcomes_missing", "harm")


def breaches(evidence: SplitEvidence, names: tuple[str, ...] = STOPS) -> list[Reason]:
    """The failed conditions under which a share must not be raised; those without data are no failures."""
    judged = [_judge(evidence, rule) for rule in RULES if rule.item.name in names]
    return [_reason(each, "hold") for each in judged if each.outcome == "fail"]


def _judge(evidence: SplitEvidence, rule: SplitRule) -> _Judged:
    item = rule.item
    value, rows = rule.read(evidence)
    limit = f"{_WORDS[item.direction]} {format(item.limit, rule.style)}"
    if value is None or rows < item.minimum:
        least = f", needs {item.minimum:,}" if rows < item.minimum else ""
        return _Judged(rule, "no_data", value, f"{rule.title}: cannot be said yet ({rows:,} {rule.rows_are}{least})")
    said = f"{rule.title}: {shown(rule, value)} ({limit})"
    if item.holds(value):
        return _Judged(rule, "pass", value, said)
    return _Judged(rule, "fail", value, f"{said}: {rule.finding}; {rule.advice}")


def shown(rule: SplitRule, value: float | None) -> str:
    """A value as people read it."""
    if value is None:
        return "\u2013"
    if value > 1e6 and "e-value" in rule.title:
        return "above a million"
    return format(value, rule.style).replace("-", "\u2212")


def rule_of(name: str) -> SplitRule:
    """The condition of a name.

    Raises:
        KeyError: when there is none.
    """
    return {rule.item.name: rule for rule in RULES}[name]


def _reason(each: _Judged, decision: Literal["promote", "hold", "reject"]) -> Reason:
    rule, item = each.rule, each.rule.item
    decisive = {
        "promote": item.kind == "improvement",
        "reject": item.critical and each.outcome == "fail",
        "hold": each.blocks,
    }[decision]
    return Reason(
        criterion=item.name,
        title=rule.title,
        outcome=each.outcome,
        critical=item.critical,
        decisive=decisive,
        value=each.value,
        limit=item.limit,
        direction=_WORDS[item.direction],
        message=each.message,
        detail="",
        link=f"{PAGE}#{rule.section}",
    )
