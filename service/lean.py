"""Imports libraries without what a serving process has no use for: it is how long a killed one is missed.

Feast has typeguard rewrite its classes while it is imported, so that they check their arguments. That takes 3.4 of the
4.3 seconds of a gateway's import (feast 0.67, typeguard 4.6). A gateway makes nothing that training and registering
have not made before it, with the checks.

LightGBM imports scikit-learn and pandas where they are installed, for classes of its own that a runner does not use.
That takes 1.2 of the 1.4 seconds of its import, and memory in each runner (lightgbm 4.7).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typeguard

# Set by the services' own module; elsewhere, libraries are for whoever imported this one, whole.
serving = False


@contextmanager
def unchecked() -> Iterator[None]:
    """Leave what is imported in this block as it is written."""
    plain = typeguard.typechecked
    typeguard.typechecked = _as_it_is
    try:
        yield
    finally:
        typeguard.typechecked = plain


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Hide libraries from what is imported in this block, in a serving process that has not imported them before."""
    hidden = [name for name in names if serving and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _as_it_is(target: Any = None, **_: Any) -> Any:
    return _as_it_is if target is None else target
