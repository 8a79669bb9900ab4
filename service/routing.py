"""A request's way to its answer: lookup, vector, primary, fallback, safe default, record. Never an exception.

Everything outside (store, runners, log, clock) is handed in, so the whole way runs in a test without a server.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from service import metrics
from service.cast import Actor, Cast
from service.clock import Clock
from service.contract import Contract
from service.features import Lookup, Stored
from service.prediction_log import Log
from service.runners import is_probability
from service.shadow import Rehearsal, ShadowPath
from service.split import Assigned, Split, assigned, logged
from service.tracing import NoTracer, Seen, Tracer
from service.vector import Vector, build_vector


@dataclass(frozen=True)
class Answer:
    """What the caller is told, and how long each stage took (milliseconds by stage)."""

    request_id: str
    prediction: float
    role: str
    model_version: str | None
    confidence: str
    fallback_reason: str | None
    violations: list[dict[str, str]]
    stages_ms: Mapping[str, float] = field(default_factory=dict, compare=False)

    def told(self) -> dict[str, Any]:
        """Return the answer's body."""
        return {
            "request_id": self.request_id,
            "prediction": self.prediction,
            "role": self.role,
            "model_version": self.model_version,
            "confidence": self.confidence,
            "fallback_reason": self.fallback_reason,
            "violations": self.violations,
        }


@dataclass(frozen=True)
class Budget:
    """How the time for one answer is split.

    Attributes:
        deadline_s: time within which an answer is given.
        reserve_s: part of it kept for the fallback.
    """

    deadline_s: float
    reserve_s: float

    @property
    def lookup_s(self) -> float:
        """Half of what the fallback does not need: a lookup that takes longer leaves the primary no time either."""
        return (self.deadline_s - self.reserve_s) / 2

    def stretched(self, factor: float) -> Budget:
        """Return a budget so many times as large."""
        return Budget(self.deadline_s * factor, self.reserve_s * factor)


@dataclass
class _Trip:
    """One request's way, filled as it goes; times in seconds of ``perf_counter``."""

    request: dict[str, Any]
    request_id: str
    budget: Budget
    started: float
    at: datetime
    drawn: Assigned | None = None
    stages: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def treated_by(self) -> str | None:
        """The role that is to answer it instead of the primary."""
        return self.drawn.split.slot if self.drawn is not None and self.drawn.arm == "treatment" else None

    def mark(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        self.stages.append((stage, since, now - since))
        metrics.observe_stage(stage, now - since)
        return now

    def left(self, end: float) -> float:
        return max(0.0, self.started + end - time.perf_counter())

    def milliseconds(self, until: float) -> dict[str, float]:
        stages = {name: round(seconds * 1000, 3) for name, _, seconds in self.stages}
        stages["total"] = round((until - self.started) * 1000, 3)
        return stages


@dataclass(frozen=True)
class _Given:
    """A model's valid answer."""

    role: str
    prediction: float
    version: str | None
    digest: str | None


class Splits(Protocol):
    """Anything that knows which split runs right now."""

    current: Split | None


class Router:
    """Answers requests.

    Args:
        contract: of the primary's feature service.
        cast: who can be asked; may change between any two requests.
        shadows: where requests are rehearsed, one path for each slot.
        valid: whether a model's output can be passed on.
        again: where the primary is asked once more what it answered; None: nowhere.
        splits: whose requests another model answers; None: nobody's, ever.
    """

    def __init__(
        self,
        contract: Contract,
        lookup: Lookup,
        cast: Cast,
        shadows: Sequence[ShadowPath],
        log: Log,
        clock: Clock,
        budget: Budget,
        *,
        service_version: str,
        valid: Callable[[Any], bool] = is_probability,
        tracer: Tracer | None = None,
        splits: Splits | None = None,
        again: ShadowPath | None = None,
    ) -> None:
        self._contract = contract
        self._lookup = lookup
        self._cast = cast
        self._shadows = tuple(shadows)
        self._again = again
        self._log = log
        self._clock = clock
        self._budget = budget
        self._service_version = service_version
        self._valid = valid
        self._tracer = None if isinstance(tracer, NoTracer) else tracer
        self._splits = splits

    async def answer(
        self, request: Mapping[str, Any], *, patience: float = 1.0, route: str = "/predict", parent: str | None = None
    ) -> Answer:
        """Answer one checked request (as :class:`service.door.Door` gives it).

        Args:
            request: join keys and request inputs, with an optional ``request_id``.
            patience: factor on the deadline; more than 1 for rows of a large batch.
            route: the endpoint that took it, for traces.
            parent: the caller's W3C ``traceparent``, if it sent one.
        """
        plain = dict(request)
        request_id = plain.pop("request_id", None) or os.urandom(16).hex()
        budget = self._budget if patience == 1.0 else self._budget.stretched(patience)
        trip = _Trip(plain, request_id, budget, time.perf_counter(), self._clock.now())
        if self._splits is not None and self._splits.current is not None:
            trip.drawn = assigned(self._splits.current, request_id, plain)
        stored, reason = await self._find(trip)
        since = time.perf_counter()
        vector = build_vector(self._contract, plain, stored, trip.at)
        trip.mark("validate", since)
        given, reason = await self._ask(trip, vector, reason)
        since = time.perf_counter()
        answer = self._compose(trip, vector, given, reason)
        since = trip.mark("post", since)
        answer = replace(answer, stages_ms=self._keep(trip, vector, given, answer, since))
        if self._tracer is not None:
            self._tracer.seen(_seen(trip, answer, route, parent))
        return answer

    async def _find(self, trip: _Trip) -> tuple[Stored, str | None]:
        try:
            known = self._lookup.at_hand(trip.request)
            if known is not None:
                return known, None
            async with asyncio.timeout(trip.left(trip.budget.lookup_s)):
                return await self._lookup.fetch(trip.request), None
        except Exception:  # a store may fail in any way; each means the same to the caller
            return Stored(), "store_unavailable"
        finally:
            trip.mark("lookup", trip.started)

    async def _ask(self, trip: _Trip, vector: Vector, reason: str | None) -> tuple[_Given, str | None]:
        budget = trip.budget
        if reason is None and not vector.usable:
            reason = "features_invalid"
        missed = None
        if reason is None and trip.treated_by is not None:
            treated = await self._treat(trip, vector, trip.treated_by)
            if isinstance(treated, _Given):
                return treated, None
            missed = treated
        if reason is None:
            left = trip.left(budget.deadline_s - budget.reserve_s)
            found = await self._try(self._cast.primary, vector.values, left, trip)
            if isinstance(found, _Given):
                return found, missed
            reason = found
        left = max(trip.left(budget.deadline_s), budget.reserve_s)
        found = await self._try(self._cast.fallback, vector.values, left, trip)
        if isinstance(found, _Given):
            return found, reason
        if reason == "circuit_open":
            again = await self._try(
                self._cast.primary, vector.values, trip.left(budget.deadline_s), trip, last_resort=True
            )
            if isinstance(again, _Given):
                return again, None
        return _Given("none", self._cast.base_rate, None, None), f"both_failed: {reason}, {found}"

    async def _treat(self, trip: _Trip, vector: Vector, slot: str) -> _Given | str:
        """Ask the treated request's own model; half of the primary's time is left for the primary."""
        actor = self._cast.actor(slot)
        if actor is None:
            return f"{slot}_absent"
        left = trip.left(trip.budget.deadline_s - trip.budget.reserve_s) / 2
        return await self._try(actor, vector.values, left, trip)

    async def _try(
        self, actor: Actor, values: Mapping[str, Any], seconds: float, trip: _Trip, *, last_resort: bool = False
    ) -> _Given | str:
        role, runner = actor.role, actor.runner
        if runner is None:
            return f"{role}_absent"
        ticket = actor.breaker.admit(last_resort=last_resort)
        if ticket is None:
            return "circuit_open" if role == "primary" else f"{role}_circuit_open"
        since = time.perf_counter()
        failed = True
        try:
            async with asyncio.timeout(seconds):
                scored = await runner.score([values], time.monotonic() + seconds)
            score = scored.scores[0] if scored.scores else None
            if not self._valid(score):
                return f"{role}_invalid_output"
            failed = False
            actor.familiar = values
            assert score is not None
            return _Given(role, float(score), scored.version, scored.digest)
        except TimeoutError:
            return f"{role}_timeout"
        except asyncio.CancelledError:
            ticket.withdraw()
            raise
        except Exception:  # a runner may fail in any way; each means the same to the caller
            return f"{role}_error"
        finally:
            now = trip.mark(role, since)
            # A row of a batch has more time than one alone: what is slow is judged by its own measure.
            ticket.settle((now - since) * self._budget.deadline_s / trip.budget.deadline_s, failed=failed)

    def _compose(self, trip: _Trip, vector: Vector, given: _Given, reason: str | None) -> Answer:
        confidence = "none" if given.role == "none" else "normal"
        if confidence == "normal" and (given.role == "fallback" or vector.violations):
            confidence = "degraded"
        found = [{"feature": v.feature, "kind": v.kind, "message": v.message} for v in vector.violations]
        return Answer(trip.request_id, given.prediction, given.role, given.version, confidence, reason, found)

    def _keep(self, trip: _Trip, vector: Vector, given: _Given, answer: Answer, since: float) -> dict[str, float]:
        # A treated request's own model has answered it, or failed to: nothing is left for that one to rehearse.
        treated = trip.treated_by
        offered = [p for p in self._shadows if p.slot != treated and p.samples(trip.request_id, trip.request)]
        kept = self._log.append(
            {
                "request_id": answer.request_id,
                "at": trip.at,
                "request": trip.request,
                "vector": vector.values,
                "event_times": vector.event_times,
                "role": answer.role,
                "model_version": answer.model_version,
                "model_digest": given.digest,
                "prediction": answer.prediction,
                "confidence": answer.confidence,
                "fallback_reason": answer.fallback_reason,
                "violations": answer.violations,
                "stages_ms": trip.milliseconds(since),
                "shadow_sampled": bool(offered),
                "shadows": [path.slot for path in offered],
                "service_version": self._service_version,
                **logged(trip.drawn),
            }
        )
        now = trip.mark("log", since)
        _count(answer, vector, kept=kept)
        if trip.drawn is not None:
            metrics.count_arm(trip.drawn.arm, answer.role)
        if self._again is not None and given.role == "primary" and self._again.samples(trip.request_id, trip.request):
            offered.append(self._again)
        if offered and kept:
            rehearsal = Rehearsal(answer.request_id, trip.at, vector.values)
            for path in offered:
                path.offer(rehearsal)
        return trip.milliseconds(now)


def _seen(trip: _Trip, answer: Answer, route: str, parent: str | None) -> Seen:
    return Seen(
        request_id=answer.request_id,
        route=route,
        role=answer.role,
        model_version=answer.model_version,
        confidence=answer.confidence,
        fallback_reason=answer.fallback_reason,
        started=trip.started,
        stages=tuple(trip.stages),
        total=time.perf_counter() - trip.started,
        traceparent=parent,
        failed=answer.role == "none",
    )


def _count(answer: Answer, vector: Vector, *, kept: bool) -> None:
    metrics.count_prediction(answer.role, answer.confidence, answer.prediction)
    if answer.fallback_reason and answer.role != "primary":
        metrics.FALLBACKS.labels(answer.fallback_reason.partition(":")[0]).inc()
    for violation in vector.violations:
        metrics.VIOLATIONS.labels(violation.feature, violation.kind).inc()
    for view, age in vector.ages.items():
        metrics.observe_age(view, age)
    if not kept:
        metrics.LOG_DROPS.labels("predictions").inc()
