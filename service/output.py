"""What a model's output must be before anybody is told of it, as the feature service's tag ``output`` declares it.

``probability``       a finite number from 0 to 1
``number``            a finite number
``number 0..1e6``     one within limits; either side may be left out
``class 0 1 2``       one of these numbers
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from service.errors import ContractError
from service.runners import is_probability

Check = Callable[[Any], bool]


def output_check(declared: str) -> Check:
    """Return what tells a valid output from garbage.

    Raises:
        ContractError: when the declaration cannot be read.
    """
    kind, _, rest = declared.strip().partition(" ")
    try:
        if kind == "probability" and not rest:
            return is_probability
        low, dots, high = rest.partition("..")
        if kind == "number" and bool(rest) == bool(dots):
            return _within(float(low or -math.inf), float(high or math.inf))
        if kind == "class" and rest:
            return _among(frozenset(float(part) for part in rest.split()))
    except ValueError:
        pass
    msg = f"output={declared!r} cannot be read; write probability, number, number <low>..<high>, or class <numbers>"
    raise ContractError(msg)


def _is_number(score: Any) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)


def _within(low: float, high: float) -> Check:
    return lambda score: _is_number(score) and low <= score <= high


def _among(classes: frozenset[float]) -> Check:
    return lambda score: _is_number(score) and float(score) in classes
