"""A request's way to its answer: lookup, vector, primary, fallback, safe default, record. Never an exception.

Everything outside (store, runners, log, clock) is handed in, so the whole way runs in a test without a server.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service import metrics
from service.clock import Clock
from service.contract import Contract
from service.features import Lookup, Stored
from service.package import Signature
from service.prediction_log import Log
from service.runners import Runner, is_probability
from service.shadow import Rehearsal, ShadowPath
from service.vector import Vector, build_vector


@dataclass(frozen=True)
class Answer:
    """What the caller is told."""

    request_id: str
    prediction: float
    role: str
    model_version: str | None
    confidence: str
    fallback_reason: str | None
    violations: list[dict[str, str]]


@dataclass(frozen=True)
class Understudies:
    """Who can answer, in order, and what to say when nobody can.

    ``primary`` and ``fallback`` are None when no model plays the role; ``fallback_signature`` says which part
    of the vector the fallback takes.
    """

    primary: Runner | None
    fallback: Runner | None
    fallback_signature: Signature | None
    base_rate: float


@dataclass
class _Trip:
    """One request's way, filled as it goes."""

    request: dict[str, Any]
    request_id: str
    started: float
    deadline: float
    stages: dict[str, float] = field(default_factory=dict)

    def mark(self, stage: str, since: float) -> None:
        seconds = time.perf_counter() - since
        self.stages[stage] = round(seconds * 1000, 3)
        metrics.STAGE.labels(stage).observe(seconds)


@dataclass(frozen=True)
class _Given:
    """A model's valid answer."""

    role: str
    prediction: float
    version: str | None
    digest: str | None


class Router:
    """Answers requests.

    Args:
        contract: of the primary's feature service.
        deadline_s: time within which an answer is given.
        reserve_s: part of it kept for the fallback.
    """

    def __init__(
        self,
        contract: Contract,
        lookup: Lookup,
        who: Understudies,
        shadow: ShadowPath,
        log: Log,
        clock: Clock,
        *,
        deadline_s: float,
        reserve_s: float,
        service_version: str,
    ) -> None:
        self._contract = contract
        self._lookup = lookup
        self._who = who
        self._shadow = shadow
        self._log = log
        self._clock = clock
        self._deadline_s = deadline_s
        self._reserve_s = reserve_s
        self._service_version = service_version

    async def answer(self, request: Mapping[str, Any], *, patience: float = 1.0) -> Answer:
        """Answer one checked request (as :class:`service.door.Door` gives it).

        Args:
            request: join keys and request inputs, with an optional ``request_id``.
            patience: factor on the deadline; more than 1 for rows of a large batch.
        """
        plain = dict(request)
        request_id = plain.pop("request_id", None) or uuid.uuid4().hex
        started = time.perf_counter()
        trip = _Trip(plain, request_id, started, self._deadline_s * patience)
        now = self._clock.now()
        stored, reason = await self._find(trip, patience)
        since = time.perf_counter()
        vector = build_vector(self._contract, plain, stored, now)
        trip.mark("validate", since)
        given, reason = await self._ask(trip, vector, reason, patience)
        answer = self._compose(trip, vector, given, reason)
        self._keep(trip, vector, given, answer, now)
        return answer

    async def _find(self, trip: _Trip, patience: float) -> tuple[Stored, str | None]:
        since = time.perf_counter()
        # Half of what the fallback does not need: a lookup that takes longer leaves the primary no time either.
        limit = (self._deadline_s - self._reserve_s) * patience / 2
        try:
            async with asyncio.timeout(limit):
                return await self._lookup.fetch(trip.request), None
        except Exception:  # a store may fail in any way; each means the same to the caller
            return Stored(), "store_unavailable"
        finally:
            trip.mark("lookup", since)

    async def _ask(self, trip: _Trip, vector: Vector, reason: str | None, patience: float) -> tuple[_Given, str | None]:
        if reason is None and not vector.usable:
            reason = "features_invalid"
        if reason is None:
            end = trip.started + trip.deadline - self._reserve_s
            found = await self._try("primary", self._who.primary, vector.values, end, trip)
            if isinstance(found, _Given):
                return found, None
            reason = found
        names = self._who.fallback_signature.features if self._who.fallback_signature else ()
        part = {name: vector.values.get(name) for name in names}
        end = max(trip.started + trip.deadline, time.perf_counter() + self._reserve_s * patience)
        found = await self._try("fallback", self._who.fallback, part, end, trip)
        if isinstance(found, _Given):
            return found, reason
        return _Given("none", self._who.base_rate, None, None), f"both_failed: {reason}, {found}"

    async def _try(
        self, role: str, runner: Runner | None, values: Mapping[str, Any], end: float, trip: _Trip
    ) -> _Given | str:
        if runner is None:
            return f"{role}_absent"
        since = time.perf_counter()
        try:
            async with asyncio.timeout(max(0.0, end - since)):
                scored = await runner.score([values])
        except TimeoutError:
            return f"{role}_timeout"
        except Exception:  # a runner may fail in any way; each means the same to the caller
            return f"{role}_error"
        finally:
            trip.mark(role, since)
        score = scored.scores[0] if scored.scores else None
        if not is_probability(score):
            return f"{role}_invalid_output"
        assert score is not None
        return _Given(role, float(score), scored.version, scored.digest)

    def _compose(self, trip: _Trip, vector: Vector, given: _Given, reason: str | None) -> Answer:
        confidence = "none" if given.role == "none" else "normal"
        if confidence == "normal" and (given.role == "fallback" or vector.violations):
            confidence = "degraded"
        found = [{"feature": v.feature, "kind": v.kind, "message": v.message} for v in vector.violations]
        return Answer(trip.request_id, given.prediction, given.role, given.version, confidence, reason, found)

    def _keep(self, trip: _Trip, vector: Vector, given: _Given, answer: Answer, now: Any) -> None:
        sampled = self._shadow.samples(trip.request_id)
        trip.stages["total"] = round((time.perf_counter() - trip.started) * 1000, 3)
        since = time.perf_counter()
        kept = self._log.append(
            {
                "request_id": answer.request_id,
                "at": now,
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
                "stages_ms": trip.stages,
                "shadow_sampled": sampled,
                "service_version": self._service_version,
            }
        )
        trip.mark("log", since)
        _count(answer, vector, kept=kept)
        if sampled and kept:
            self._shadow.offer(Rehearsal(answer.request_id, now, vector.values))


def _count(answer: Answer, vector: Vector, *, kept: bool) -> None:
    metrics.PREDICTIONS.labels(answer.role, answer.confidence).inc()
    if answer.role != "none":
        metrics.SCORE.labels(answer.role).observe(answer.prediction)
    if answer.fallback_reason:
        metrics.FALLBACKS.labels(answer.fallback_reason.partition(":")[0]).inc()
    for violation in vector.violations:
        metrics.VIOLATIONS.labels(violation.feature, violation.kind).inc()
    for view, age in vector.ages.items():
        metrics.AGE.labels(view).observe(age)
    if not kept:
        metrics.LOG_DROPS.labels("predictions").inc()
