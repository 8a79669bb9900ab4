"""Garbage is told from answers, as declared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from service.errors import ContractError
from service.output import output_check

GARBAGE = [None, math.nan, math.inf, -math.inf, "0.5", True, [0.5], object()]


@pytest.mark.parametrize("declared", ["probability", "number", "number 0..1", "class 0 1"])
@pytest.mark.parametrize("score", GARBAGE, ids=repr)
def test_what_is_no_finite_number_is_never_an_answer(declared: str, score: Any) -> None:
    assert not output_check(declared)(score)


@pytest.mark.parametrize(
    ("declared", "good", "bad"),
    [
        ("probability", [0, 0.0, 0.3, 1], [-0.001, 1.001]),
        ("number", [-4e9, 0, 7.5], []),
        ("number 0..1e6", [0, 1e6], [-4e9, 1e6 + 1]),
        ("number 0..", [0, 1e300], [-1]),
        ("number ..0", [-1e300, 0], [1]),
        ("class 0 1 2", [0, 1.0, 2], [3, 0.5, -1]),
    ],
)
def test_an_answer_is_within_what_was_declared(declared: str, good: list[float], bad: list[float]) -> None:
    check = output_check(declared)

    assert all(check(score) for score in good)
    assert not any(check(score) for score in bad)


@pytest.mark.parametrize("declared", ["", "prob", "probability 2", "number 5", "number a..b", "class", "class a b"])
def test_a_declaration_that_cannot_be_read_is_told(declared: str) -> None:
    with pytest.raises(ContractError, match="cannot be read; write probability"):
        output_check(declared)
