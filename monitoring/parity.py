"""Were the served values those that training would have seen? Value by value. Pure.

The log holds each vector with its instant; the offline store gives the values known at that instant. Both must be
equal to the last bit; :mod:`monitoring.parity_causes` says in which way they are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from monitoring.parity_causes import Bools, Cause, Explainer, Recompute, Vectors, homes_of, plain, same
from service.contract import Contract

EXAMPLES = 3


@dataclass(frozen=True)
class Example:
    """One difference."""

    request_id: str
    at: datetime
    served: Any
    expected: Any


@dataclass(frozen=True)
class FeatureParity:
    """How one feature fared.

    Attributes:
        home: the view or on-demand view it comes from, ``request`` for a key.
        compared: vectors whose value could be compared.
        differing: of those, how many were not equal.
        redacted: vectors whose value could not be, because the log does not hold it or what it is made from.
    """

    feature: str
    home: str
    compared: int
    differing: int
    cause: Cause | None
    examples: tuple[Example, ...]
    redacted: int = 0

    @property
    def share(self) -> float:
        """Share of compared values that differ."""
        return self.differing / self.compared if self.compared else 0.0


@dataclass(frozen=True)
class Parity:
    """The audit's result.

    Attributes:
        vectors: vectors looked at.
        unread: vectors made while the online store could not be asked; they count only where they differ.
        exact: compared vectors in which every value was equal.
        features: in model order.
        redacted: vectors of which at least one value could not be compared, because the log does not hold it.
        behind, ahead: per view, vectors that were given an older or a newer row than was known.
    """

    vectors: int
    compared: int
    exact: int
    unread: int
    features: tuple[FeatureParity, ...]
    behind: Mapping[str, int]
    ahead: Mapping[str, int]
    redacted: int = 0

    @property
    def exact_share(self) -> float | None:
        """Share of compared vectors without any difference; None when none could be compared."""
        return self.exact / self.compared if self.compared else None

    @property
    def worst(self) -> tuple[FeatureParity, ...]:
        """Features that differ, the most often differing first."""
        return tuple(sorted((f for f in self.features if f.differing), key=lambda f: -f.share))


def compare(vectors: Vectors, contract: Contract, recompute: Recompute) -> Parity:
    """Compare every value and explain what differs.

    Args:
        recompute: joins features to rows anew; asked only about vectors that differ.
    """
    homes = homes_of(contract)
    rows = len(vectors.requests)
    nowhere = np.zeros(rows, dtype=bool)
    hidden = {name: vectors.hidden.get(name, nowhere) for name in contract.features}
    looked = {name: ~hidden[name] & (vectors.read if is_stored(contract, name) else True) for name in hidden}
    differs: dict[str, Bools] = {}
    for spec in contract.fields:
        equal = same(spec, vectors.served[spec.name], vectors.expected[spec.name])
        differs[spec.name] = ~equal & looked[spec.name]
    explained = Explainer(vectors, contract, recompute, differs)
    features = []
    for spec in contract.fields:
        bad, without = differs[spec.name], int(hidden[spec.name].sum())
        cause = explained.cause(spec) if bad.any() else None
        examples = _examples(vectors, spec.name, bad)
        compared = int(looked[spec.name].sum())
        features.append(
            FeatureParity(spec.name, homes[spec.name], compared, int(bad.sum()), cause, examples, without)
        )  # fmt: skip
    anything = np.logical_or.reduce(list(differs.values())) if differs else nowhere
    something = np.logical_or.reduce(list(looked.values())) if looked else ~nowhere
    times = {view.name: (vectors.served_times[view.name], vectors.expected_times[view.name]) for view in contract.views}
    behind = {name: int(((served < known) & vectors.read).sum()) for name, (served, known) in times.items()}
    ahead = {name: int(((served > known) & vectors.read).sum()) for name, (served, known) in times.items()}
    looked_at = (vectors.read & something) | anything
    return Parity(
        vectors=rows,
        compared=int(looked_at.sum()),
        exact=int((looked_at & ~anything).sum()),
        unread=int((~vectors.read).sum()),
        features=tuple(features),
        behind=behind,
        ahead=ahead,
        redacted=int(np.logical_or.reduce(list(hidden.values())).sum()) if hidden else 0,
    )


def is_stored(contract: Contract, feature: str) -> bool:
    """Whether a feature needs the online store, itself or through what it is computed from."""
    views = any(feature in view.features for view in contract.views)
    return views or any(feature in step.features and step.sources for step in contract.on_demand)


def _examples(vectors: Vectors, feature: str, bad: Bools) -> tuple[Example, ...]:
    found = []
    for place in np.flatnonzero(bad)[:EXAMPLES]:
        request = vectors.requests.iloc[place]
        served, expected = (plain(frame[feature].iloc[place]) for frame in (vectors.served, vectors.expected))
        at = request["event_timestamp"].to_pydatetime()
        found.append(Example(str(request["request_id"]), at, served, expected))
    return tuple(found)
