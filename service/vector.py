"""From request and stored values to the one vector that models and log all get, and what is wrong with it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from service.contract import Contract, FieldSpec, OnDemand, Policy, ViewSpec, shown
from service.features import Stored

Kind = Literal["missing", "null", "stale", "range", "type", "category"]

# A feature writer's clock may run a little ahead of ours; more than this is a value from the future.
_CLOCK_SKEW = timedelta(minutes=5)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "float": (int, float),
    "int": int,
    "str": str,
    "bool": bool,
    "timestamp": datetime,
}


@dataclass(frozen=True)
class Violation:
    """One way in which a vector breaks its contract.

    Attributes:
        feature: a feature's name, or a view's when all its features share the fault.
        policy: what the contract says to do about it.
    """

    feature: str
    kind: Kind
    message: str
    policy: Policy


@dataclass(frozen=True)
class Vector:
    """The feature values of one request.

    Attributes:
        values: every feature of the contract, in model order; None when missing.
        event_times: per view the event time of its value.
        ages: per view the value's age in seconds at the request's time.
        violations: everything that breaks the contract.
    """

    values: Mapping[str, Any]
    event_times: Mapping[str, datetime | None]
    ages: Mapping[str, float]
    violations: tuple[Violation, ...]

    @property
    def usable(self) -> bool:
        """Whether the primary may answer with it."""
        return all(v.policy == "tolerate" for v in self.violations)


def build_vector(contract: Contract, request: Mapping[str, Any], stored: Stored, now: datetime) -> Vector:
    """Assemble and check a vector.

    A value older than its view's TTL, or from the future, is null here, as it is in the offline join (Feast does
    not look at it online, feast 0.67), so that serving never sees what training could not.
    """
    known: dict[str, Any] = dict(request)
    violations: list[Violation] = []
    policy: dict[str, Policy] = {}
    ages: dict[str, float] = {}
    unknown: set[str] = set()
    for view in contract.views:
        at = stored.event_times.get(view.name)
        values = stored.values.get(view.name)
        fault = _view_fault(view, request, at if values is not None else None, now)
        if fault:
            violations.append(fault)
        if at is not None:
            ages[view.name] = (now - at).total_seconds()
        gone = values is None or at is None or not _in_time(view, now - at)
        for name in view.features:
            policy[name] = view.policy
            known[name] = None if gone or values is None else values.get(name)
            if gone:
                unknown.add(name)
    for step in contract.on_demand:
        computed = _compute(step, known)
        tolerated = all(v.policy == "tolerate" for v in contract.views if v.name in step.sources)
        lost = any(name in unknown for name in step.inputs)
        for name in step.features:
            known[name] = computed.get(name)
            policy[name] = "tolerate" if step.sources and tolerated else "degrade"
            if lost:
                unknown.add(name)
    for spec in contract.fields:
        found = None if spec.name in unknown else check_value(spec, known[spec.name])
        if found:
            violations.append(Violation(spec.name, *found, policy.get(spec.name, "tolerate")))
    return Vector({n: known[n] for n in contract.features}, stored.event_times, ages, tuple(violations))


def _in_time(view: ViewSpec, age: timedelta) -> bool:
    return age >= -_CLOCK_SKEW and (view.ttl is None or age <= view.ttl)


def _compute(step: OnDemand, known: Mapping[str, Any]) -> Mapping[str, Any]:
    # The function is the user's own; whatever it raises must become a degraded answer, never a 500.
    try:
        return {name: values[0] for name, values in step.compute({n: [known[n]] for n in step.inputs}).items()}
    except Exception:
        return {}


def _view_fault(view: ViewSpec, request: Mapping[str, Any], at: datetime | None, now: datetime) -> Violation | None:
    if at is None:
        keys = ", ".join(f"{k}={request.get(k)}" for k in view.keys)
        return Violation(view.name, "missing", f"{view.name} holds nothing for {keys}", view.policy)
    age = now - at
    if age < -_CLOCK_SKEW:
        text = f"{view.name} is dated {describe(-age)} after now; check the clocks of feed and service"
        return Violation(view.name, "stale", text, view.policy)
    if view.max_staleness is not None and age > view.max_staleness:
        text = f"{view.name} is {describe(age)} old (limit {describe(view.max_staleness)}); check its feed"
        return Violation(view.name, "stale", text, view.policy)
    return None


def check_value(spec: FieldSpec, value: Any) -> tuple[Kind, str] | None:
    """Return what is wrong with one value: the kind and a sentence, or None."""
    name = spec.name
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None if spec.nullable else ("null", f"{name} is null and must not be")
    if not _has_type(spec, value):
        return "type", f"{name}={value!r} is not of type {spec.dtype}"
    if spec.allowed and value not in spec.allowed:
        return "category", f"{name}={value!r} is not one of {', '.join(spec.allowed)}"
    if spec.minimum is not None and value < spec.minimum:
        return "range", f"{name}={value} is below {shown(spec.minimum)}"
    if spec.maximum is not None and value > spec.maximum:
        return "range", f"{name}={value} is above {shown(spec.maximum)}"
    return None


def _has_type(spec: FieldSpec, value: Any) -> bool:
    if isinstance(value, bool):
        return spec.dtype == "bool"
    return isinstance(value, _TYPES[spec.dtype])


def describe(span: timedelta) -> str:
    """Write a duration for a person: ``3 h 12 min``, ``45 s``, ``12 d 4 h``."""
    seconds = int(span.total_seconds())
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for unit, size in units:
        amount, seconds = divmod(seconds, size)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"
