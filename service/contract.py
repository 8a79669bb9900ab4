"""What a request and a feature may look like: frozen limits that every stage reads. Pure.

``definitions.py`` reads them from the tags on the Feast definitions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

from service.errors import ContractError

Dtype = Literal["float", "int", "str", "bool", "timestamp"]
Policy = Literal["degrade", "tolerate"]
Values = dict[str, list[Any]]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class FieldSpec:
    """Limits of one value: a join key, a request input or a feature.

    ``minimum``/``maximum`` bound numbers; ``earliest``/``latest`` bound timestamps relative to the clock's now.
    """

    name: str
    dtype: Dtype
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    earliest: timedelta | None = None
    latest: timedelta | None = None
    allowed: tuple[str, ...] = ()
    categorical: bool = False
    description: str = ""

    @property
    def is_category(self) -> bool:
        """Whether the value is a category rather than a quantity."""
        return self.dtype == "str" or self.categorical


@dataclass(frozen=True)
class ViewSpec:
    """One table of stored features: how it is looked up and how old its values may be."""

    name: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    ttl: timedelta | None
    max_staleness: timedelta | None
    policy: Policy


@dataclass(frozen=True)
class OnDemand:
    """Features computed at request time by one function, the same in training and serving.

    ``compute`` takes and returns a dict of equally long lists. ``sources`` are the stored views it reads;
    empty when it needs nothing but the request. ``code`` is the function's source without comments and layout.
    """

    name: str
    inputs: tuple[str, ...]
    features: tuple[str, ...]
    sources: tuple[str, ...]
    compute: Callable[[Values], Values] = field(compare=False)
    code: str = ""


@dataclass(frozen=True)
class Contract:
    """Everything one feature service promises, in model order."""

    name: str
    keys: tuple[FieldSpec, ...]
    inputs: tuple[FieldSpec, ...]
    views: tuple[ViewSpec, ...]
    on_demand: tuple[OnDemand, ...]
    fields: tuple[FieldSpec, ...]
    output: str = "probability"
    positive: str = ""
    slices: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's inputs, in the order every model and log uses."""
        return tuple(f.name for f in self.fields)

    @property
    def request_fields(self) -> tuple[FieldSpec, ...]:
        """The flat request: join keys, then request inputs."""
        return self.keys + self.inputs

    @property
    def numbers(self) -> tuple[str, ...]:
        """Features compared as quantities."""
        return tuple(f.name for f in self.fields if not f.is_category)

    @property
    def categories(self) -> tuple[str, ...]:
        """Features compared as categories."""
        return tuple(f.name for f in self.fields if f.is_category)

    def spec(self, feature: str) -> FieldSpec:
        """Return the limits of one feature.

        Raises:
            KeyError: when this contract has no such feature.
        """
        return next(f for f in self.fields if f.name == feature)

    @property
    def digest(self) -> str:
        """SHA-256 over every limit, name and on-demand function; equal digests mean equal contracts."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return the contract as a JSON object, spans in seconds: what a model package keeps of it."""
        plain = asdict(self)
        for entry in plain["on_demand"]:
            entry.pop("compute")
        written: dict[str, Any] = json.loads(json.dumps(plain, default=_seconds))
        return written


def _seconds(span: timedelta) -> float:
    return span.total_seconds()


def shown(limit: float) -> str:
    """A limit as whoever wrote it would: ``6000``, ``0.125``, ``1234567``."""
    return f"{limit:.15g}"


def duration(text: str, where: str = "duration") -> timedelta:
    """Parse ``90m``, ``36h``, ``60d`` or ``15s``.

    Raises:
        ContractError: when the text is something else.
    """
    match = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if not match:
        msg = f"{where}: {text!r} is not a duration; write a whole number and one of s, m, h, d (90m)"
        raise ContractError(msg)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
