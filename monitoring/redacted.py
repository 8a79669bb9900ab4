"""What the log does not hold on purpose: which values a reader must leave out instead of taking them for nulls. Pure.

Records say it themselves (``redacted``), so that logs from before and after a change of the setting can be read as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.contract import Contract, FieldSpec

Bools = npt.NDArray[np.bool_]
_COLUMN = "redacted"


def removed(frame: pd.DataFrame) -> dict[str, Bools]:
    """Return by name in which rows a request field's or feature's value was removed or replaced.

    Args:
        frame: as :func:`monitoring.export.predictions` returns it, or a part of it; one without the column holds all.
    """
    if _COLUMN not in frame:
        return {}
    codes, texts = pd.factorize(frame[_COLUMN].fillna(""))
    held = [set(str(text).split(",")) for text in texts]
    names = sorted(set().union(*held) - {""})
    return {name: np.array([name in each for each in held], dtype=bool)[codes] for name in names}


def unknowable(frame: pd.DataFrame, contract: Contract) -> dict[str, Bools]:
    """Return by feature in which rows its value cannot be recomputed: it, a key or an input of it is not in the log."""
    gone = removed(frame)
    found = {name: _any(gone, needs, len(frame)) for name, needs in needed(contract).items()}
    return {name: rows for name, rows in found.items() if rows.any()}


def needed(contract: Contract) -> dict[str, frozenset[str]]:
    """Return by feature the names its value is made from, itself among them."""
    keys = {view.name: frozenset(view.keys) for view in contract.views}
    needs = {name: frozenset({name}) for name in contract.features}
    for view in contract.views:
        needs |= {name: frozenset({name}) | keys[view.name] for name in view.features if name in needs}
    for step in contract.on_demand:
        inputs = frozenset(step.inputs).union(*(keys.get(source, frozenset()) for source in step.sources))
        needs |= {name: frozenset({name}) | inputs for name in step.features}
    return needs


def stood_in(requests: pd.DataFrame, frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Return requests in which every removed input has some valid value, so that features can be computed at all.

    What is computed from one means nothing and must be left out (:func:`unknowable`). Join keys become null.

    Args:
        requests: the request's fields and ``event_timestamp``, row by row as ``frame``.
    """
    gone = removed(frame)
    filled = requests.copy()
    keys = {spec.name for spec in contract.keys}
    for spec in contract.request_fields:
        rows = gone.get(spec.name)
        if rows is None:
            continue
        if spec.name in keys:
            filled[spec.name] = filled[spec.name].mask(rows)
        elif spec.dtype == "timestamp":
            filled[spec.name] = filled[spec.name].where(~rows, filled["event_timestamp"])
        else:
            filled[spec.name] = filled[spec.name].where(~rows, _valid(spec))
    return filled


def _valid(spec: FieldSpec) -> Any:
    if spec.dtype == "str":
        return spec.allowed[0] if spec.allowed else ""
    if spec.dtype == "bool":
        return False
    low = spec.minimum if spec.minimum is not None else min(0.0, spec.maximum or 0.0)
    return int(low) if spec.dtype == "int" else low


def _any(gone: dict[str, Bools], names: Iterable[str], rows: int) -> Bools:
    found = np.zeros(rows, dtype=bool)
    for name in names:
        found |= gone.get(name, False)
    return found
