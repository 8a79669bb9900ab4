"""Whether to train again, from what was measured: drift, performance, age, schedule, cool-down, labels. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

Outcome = Literal["due", "fine", "blocked", "no data"]
Answer = Literal["retrain", "wait", "no data"]
_DAY = timedelta(days=1)
# Older findings of the monitor say nothing of today.
_STALE = 3 * _DAY
# Alarms that ask for another model; the others ask for another feed.
RULES = ("drift", "new_category", "domain", "mean_shift_lasting", "importance", "low_confidence")
# A single window may be a holiday.
LASTING = 3


@dataclass(frozen=True)
class Limits:
    """Settings: ages in days; ``complete`` is the least share of mature predictions with labels."""

    max_age: float = 30.0
    every: float = 0.0
    cooldown: float = 7.0
    complete: float = 0.9
    maturity: float = 1.0


@dataclass(frozen=True)
class Alarm:
    """An alarm that stands, since ``first``, over so many judged windows."""

    name: str
    first: datetime
    windows: int
    text: str


@dataclass(frozen=True)
class Facts:
    """What is known.

    Attributes:
        now: by the clock.
        primary: digest of the primary; "" when nobody plays it.
        trained: moment the primary's training stood at; ``newest``: that of the newest training of any seated model.
        until: end of the newest judged window; None when there is none.
        alarms: of that window.
        concept: evidence that truth has left the estimate, and its limit; None without labels.
        labelled: share of predictions since the oldest standing alarm that have a label; None without any.
        decided: when retraining was last decided.
    """

    now: datetime
    primary: str = ""
    trained: datetime | None = None
    newest: datetime | None = None
    until: datetime | None = None
    alarms: tuple[Alarm, ...] = ()
    concept: tuple[float, float] | None = None
    labelled: float | None = None
    decided: datetime | None = None


@dataclass(frozen=True)
class Reason:
    """One rule with its number, its limit and what it rests on."""

    name: str
    outcome: Outcome
    value: float | None
    limit: float | None
    text: str
    evidence: str


@dataclass(frozen=True)
class Decision:
    """What was decided at a moment, and why; ``key`` is the same for the same evidence."""

    at: datetime
    decision: Answer
    reasons: tuple[Reason, ...]
    key: str

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"at": self.at.isoformat(), "decision": self.decision, "key": self.key,
                "reasons": [asdict(reason) for reason in self.reasons]}  # fmt: skip


def decide(facts: Facts, limits: Limits) -> Decision:
    """Decide.

    Any rule that is due asks for a training; cool-down and labels that are missing hold it back. What could not be
    measured asks for nothing, and with nothing measured the decision is ``no data``.
    """
    if not facts.primary:
        none = Reason("primary", "no data", None, None, "nobody plays the primary; run `make train`", "roles.json")
        return Decision(facts.now, "no data", (none,), _key("no data", facts, (none,)))
    asks = (_drift(facts), _performance(facts), _age(facts, limits), _schedule(facts, limits))
    due = [reason for reason in asks if reason.outcome == "due"]
    holds = (_cooldown(facts, limits), *([_labels(facts, limits)] if due else []))
    reasons = (*asks, *holds)
    answer: Answer = "wait"
    if due and not any(reason.outcome == "blocked" for reason in holds):
        answer = "retrain"
    elif all(reason.outcome == "no data" for reason in asks[:3]):
        answer = "no data"
    return Decision(facts.now, answer, reasons, _key(answer, facts, reasons))


def _drift(facts: Facts) -> Reason:
    where = "monitoring/windows.jsonl"
    if facts.until is None:
        return Reason("drift", "no data", None, LASTING, "the monitor has judged no window", where)
    if facts.now - facts.until > _STALE:
        return Reason("drift", "no data", None, LASTING, f"no window judged since {facts.until:%Y-%m-%d}", where)
    mine = [a for a in facts.alarms if a.name.partition(":")[0] in RULES]
    longest = max(mine, key=lambda a: a.windows, default=None)
    if longest is None:
        return Reason("drift", "fine", 0.0, LASTING, f"no alarm in the window until {facts.until:%Y-%m-%d}", where)
    text = f"{len(mine)} alarms stand, {longest.name} for {longest.windows} windows (limit {LASTING}): {longest.text}"
    return Reason("drift", "due" if longest.windows >= LASTING else "fine", longest.windows, LASTING, text, where)


def _performance(facts: Facts) -> Reason:
    where = "monitoring/performance.jsonl"
    if facts.concept is None:
        return Reason("performance", "no data", None, None, "no truth is known", where)
    value, limit = facts.concept
    text = f"evidence that truth has left the estimate: {value:,.1f} (limit {limit:g})"
    return Reason("performance", "due" if value >= limit else "fine", value, limit, text, where)


def _age(facts: Facts, limits: Limits) -> Reason:
    where = "record.json of the primary's package"
    return _since("age", facts.trained, facts.now, limits.max_age, "the primary was trained", where)


def _schedule(facts: Facts, limits: Limits) -> Reason:
    where = "record.json of the seated packages"
    return _since("schedule", facts.newest, facts.now, limits.every, "the newest model was trained", where)


def _since(name: str, at: datetime | None, now: datetime, limit: float, what: str, where: str) -> Reason:
    """A reason that is due ``limit`` days after a moment; 0 never."""
    if not limit:
        return Reason(name, "fine", None, None, "no limit is set", where)
    if at is None:
        return Reason(name, "no data", None, limit, f"when {what} is not on record", where)
    days = (now - at) / _DAY
    text = f"{what} {days:.1f} days ago, as of {at:%Y-%m-%d} (limit {limit:g})"
    if days < 0:
        return Reason(name, "no data", days, limit, f"{text}: after the clock's now", where)
    return Reason(name, "due" if days >= limit else "fine", days, limit, text, where)


def _cooldown(facts: Facts, limits: Limits) -> Reason:
    where = "retraining/decisions.jsonl, record.json of the seated packages"
    past = [at for at in (facts.newest, facts.decided) if at is not None and at <= facts.now]
    if not past:
        return Reason("cooldown", "fine", None, limits.cooldown, "no earlier training or decision", where)
    days = (facts.now - max(past)) / _DAY
    blocked = days < limits.cooldown
    text = f"last training or decision {days:.1f} days ago (cool-down {limits.cooldown:g})"
    return Reason("cooldown", "blocked" if blocked else "fine", days, limits.cooldown, text, where)


def _labels(facts: Facts, limits: Limits) -> Reason:
    where = "label log"
    lasting = [a for a in facts.alarms if a.name.partition(":")[0] in RULES and a.windows >= LASTING]
    if not lasting or _drift(facts).outcome != "due":
        return Reason("labels", "fine", facts.labelled, limits.complete, "no drift to learn from first", where)
    since = min(a.first for a in lasting)
    if facts.labelled is None:
        text = f"the drift began on {since:%Y-%m-%d} and none of its predictions is old enough for its label"
        return Reason("labels", "blocked", None, limits.complete, text, where)
    blocked = facts.labelled < limits.complete
    text = f"{facts.labelled:.0%} of the predictions since the drift began on {since:%Y-%m-%d} have labels"
    return Reason(
        "labels", "blocked" if blocked else "fine", facts.labelled, limits.complete,
        f"{text} (at least {limits.complete:.0%})", where,
    )  # fmt: skip


def _key(answer: Answer, facts: Facts, reasons: tuple[Reason, ...]) -> str:
    # Per window and model, not per moment: ages grow by the second.
    outcomes: Mapping[str, str] = {reason.name: reason.outcome for reason in reasons}
    window = facts.until or facts.now.replace(hour=0, minute=0, second=0, microsecond=0)
    whole = [answer, facts.primary, window.isoformat(), dict(outcomes), [a.name for a in facts.alarms]]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
