"""Why served values differ from those training would have seen, as far as the values tell. Pure.

The differences of a feature are held against the ways in which serving is known to go wrong, and the first that
explains nearly all of them is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.contract import Contract, FieldSpec
from service.vector import describe

# A cause must explain this share of a feature's differences.
ENOUGH = 0.95
# Differences looked at when a cause is sought by joining again; more make it slower, not surer.
MOST_ROWS = 1000
MOST_LABELS = 200
LEAST_PER_LABEL = 10
HOURS = [timedelta(hours=sign * h) for h in (*range(1, 15), 24) for sign in (-1, 1)]
OFFSETS = [timedelta(minutes=sign * m) for m in (15, 30) for sign in (-1, 1)] + HOURS

Bools = npt.NDArray[np.bool_]
CauseKind = Literal[
    "filled",
    "invented",
    "lost",
    "late",
    "early",
    "relabelled",
    "shifted",
    "scaled",
    "rounded",
    "instant",
    "unexplained",
]
# Joins features to rows (request fields, ``event_timestamp``): values of the contract's features, in order.
Recompute = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Vectors:
    """Logged vectors and what the offline store says they should have been; all frames row by row.

    Attributes:
        requests: ``request_id``, ``event_timestamp`` (the instant of the prediction), and the request's fields.
        served, expected: one column per feature.
        served_times, expected_times: one column per view, the event time of the values used, UTC or null.
        read: whether the online store could be asked; where not, stored features are not compared.
        hidden: by feature the rows in which the log does not hold what a comparison needs (redacted).
    """

    requests: pd.DataFrame
    served: pd.DataFrame
    expected: pd.DataFrame
    served_times: pd.DataFrame
    expected_times: pd.DataFrame
    read: Bools
    hidden: Mapping[str, Bools] = field(default_factory=dict)


@dataclass(frozen=True)
class Cause:
    """Why a feature differs, as far as the values tell.

    Attributes:
        text: a sentence for a person, with the numbers found.
    """

    kind: CauseKind
    text: str


def homes_of(contract: Contract) -> dict[str, str]:
    """Where each feature comes from: a view, an on-demand view, or ``request``."""
    homes = dict.fromkeys(contract.features, "request")
    homes |= {name: view.name for view in contract.views for name in view.features}
    return homes | {name: step.name for step in contract.on_demand for name in step.features}


def same(spec: FieldSpec, served: pd.Series[Any], expected: pd.Series[Any]) -> Bools:
    """Whether values are equal, null to null and number to number to the last bit."""
    null = served.isna().to_numpy(bool), expected.isna().to_numpy(bool)
    if spec.dtype == "int":
        whole = (values.astype("Float64").fillna(0) % 1 == 0 for values in (served, expected))
        both = np.logical_and.reduce([w.to_numpy(bool) for w in whole])
        a, b = (
            values.where(both & ~null[0] & ~null[1], 0).astype("Int64").to_numpy("int64")
            for values in (served, expected)
        )
        equal = np.where(both, a == b, _numbers(served) == _numbers(expected))
    elif spec.dtype in ("float", "bool"):
        equal = _numbers(served) == _numbers(expected)
    else:
        equal = served.astype(object).to_numpy() == expected.astype(object).to_numpy()
    return np.asarray((null[0] & null[1]) | (~null[0] & ~null[1] & equal), dtype=bool)


def _numbers(values: pd.Series[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


class Explainer:
    """Finds causes; keeps what it joined, because the features of a view share it."""

    def __init__(
        self, vectors: Vectors, contract: Contract, recompute: Recompute, differs: Mapping[str, Bools]
    ) -> None:
        self._v = vectors
        self._contract = contract
        self._recompute = recompute
        self._differs = differs
        self._at_offset: dict[timedelta, pd.DataFrame] = {}
        self._places = self._sample()
        self._common = self._common_offset()

    def cause(self, spec: FieldSpec) -> Cause:
        """Name what explains nearly all of one feature's differences."""
        bad = self._differs[spec.name]
        served, expected = self._v.served[spec.name][bad], self._v.expected[spec.name][bad]
        found = _nulls(served, expected)
        if found is None and self._common is not None and spec.name in self._view_features():
            found = _instant(self._common)
        found = found or self._late(spec)
        if found is None and spec.dtype in ("float", "int"):
            found = _arithmetic(spec, _numbers(served), _numbers(expected))
        if found is None:
            found = _relabelled(spec, served, expected, len(self._v.served))
        return found or self._own_offset(spec) or Cause("unexplained", "no single cause explains the differences")

    def _view_features(self) -> set[str]:
        return {name for view in self._contract.views for name in view.features}

    def _sample(self) -> npt.NDArray[np.int64]:
        stored = [self._differs[name] for name in self._contract.features if name in self._view_features()]
        bad = np.flatnonzero(np.logical_or.reduce(stored)) if stored else np.array([], dtype=np.int64)
        step = max(1, -(-len(bad) // MOST_ROWS))
        return bad[::step]

    def _late(self, spec: FieldSpec) -> Cause | None:
        """Another row was served than was known: by its event time, or because its values are the row's before."""
        view = next((v for v in self._contract.views if spec.name in v.features), None)
        if view is None:
            return None
        bad = self._differs[spec.name]
        served, expected = self._v.served_times[view.name][bad], self._v.expected_times[view.name][bad]
        behind = (served < expected).to_numpy(bool)
        before = self._row_before(spec, view.name)
        ahead = (served > expected).to_numpy(bool)
        if ahead.mean() >= ENOUGH:
            lead = pd.Timedelta((served - expected)[ahead].median()).to_pytimedelta()
            return Cause("early", f"a row was served before it was known, dated {describe(lead)} later (median)")
        if behind.mean() < ENOUGH and before < ENOUGH:
            return None
        rows = "the row before the newest known one was served"
        text = rows if before >= ENOUGH else "an older row than the newest known one was served"
        if behind.any():
            lag = pd.Timedelta((expected - served)[behind].median()).to_pytimedelta()
            text += f", dated {describe(lag)} earlier (median)"
        return Cause("late", text)

    def _row_before(self, spec: FieldSpec, view: str) -> float:
        """Share of differences that vanish when the row before the newest known one is taken."""
        places = self._of(spec)
        times = self._v.expected_times[view].iloc[places]
        known = times.notna().to_numpy(bool)
        if not known.any():
            return 0.0
        rows = self._v.requests.iloc[places[known]].copy()
        rows["event_timestamp"] = times[known] - pd.Timedelta(1, "us")
        again = self._recompute(rows)
        served = self._v.served[spec.name].iloc[places[known]]
        return float(same(spec, served, again[spec.name].set_axis(served.index)).sum() / len(places))

    def _of(self, spec: FieldSpec) -> npt.NDArray[np.int64]:
        return self._places[self._differs[spec.name][self._places]]

    def _share_at(self, offset: timedelta, specs: Sequence[FieldSpec]) -> float:
        """Share of differing values that vanish when everything is looked up at another instant."""
        if offset not in self._at_offset:
            rows = self._v.requests.iloc[self._places].copy()
            rows["event_timestamp"] += offset
            self._at_offset[offset] = self._recompute(rows)
        again = self._at_offset[offset]
        fixed, every = 0, 0
        for spec in specs:
            bad = self._differs[spec.name][self._places]
            served = self._v.served[spec.name].iloc[self._places]
            fixed += int((same(spec, served, again[spec.name].set_axis(served.index)) & bad).sum())
            every += int(bad.sum())
        return fixed / every if every else 0.0

    def _common_offset(self) -> timedelta | None:
        """The instant at which several views' values would all have been right, if there is one."""
        specs = [s for s in self._contract.fields if s.name in self._view_features() and self._differs[s.name].any()]
        homes = homes_of(self._contract)
        if len({homes[s.name] for s in specs}) < 2:
            return None
        return self._best(specs)

    def _own_offset(self, spec: FieldSpec) -> Cause | None:
        found = self._best([spec]) if spec.name in self._view_features() else None
        return None if found is None else _instant(found)

    def _best(self, specs: Sequence[FieldSpec]) -> timedelta | None:
        shares = {offset: self._share_at(offset, specs) for offset in OFFSETS}
        good = [offset for offset, share in shares.items() if share >= ENOUGH]
        return min(good, key=lambda offset: (-round(shares[offset], 3), abs(offset)), default=None)


def _nulls(served: pd.Series[Any], expected: pd.Series[Any]) -> Cause | None:
    if served.isna().mean() >= ENOUGH:
        return Cause("lost", "null was served where training would have known a value")
    if expected.isna().mean() < ENOUGH:
        return None
    values = served[expected.isna()].dropna().unique()
    if len(values) == 1:
        return Cause("filled", f"null was served as {plain(values[0])!r}")
    return Cause("invented", "values were served where training would have known none")


def _relabelled(spec: FieldSpec, served: pd.Series[Any], expected: pd.Series[Any], rows: int) -> Cause | None:
    """Labels exchanged for others: what a category encoder in another order does, to all of the traffic or a part."""
    known = served.notna() & expected.notna()
    pairs = pd.DataFrame({"was": expected[known].astype(object), "is": served[known].astype(object)})
    labels = pairs["was"].nunique()
    # Numbers are labels only where each occurs often.
    if pairs.empty or labels > MOST_LABELS or (not spec.is_category and labels * LEAST_PER_LABEL > len(pairs)):
        return None
    first = pairs.value_counts().reset_index(name="rows").drop_duplicates("was").sort_values("was", kind="stable")
    if first["rows"].sum() < ENOUGH * len(served):
        return None
    shown = [f"{was} as {new}" for was, new in zip(first["was"], first["is"], strict=True)]
    listed = ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
    part = "" if len(served) >= ENOUGH * rows else f", in {len(served) / rows:.0%} of the vectors"
    if first["is"].duplicated().any():
        return Cause("relabelled", f"categories are merged into others: {listed}{part}")
    return Cause("relabelled", f"categories are exchanged one for one: {listed}{part}")


def _arithmetic(spec: FieldSpec, served: Any, expected: Any) -> Cause | None:
    known = ~np.isnan(served) & ~np.isnan(expected)
    if known.mean() < ENOUGH:
        return None
    served, expected = served[known], expected[known]
    close = np.isclose(served, expected, rtol=1e-6, atol=0)
    if close.mean() >= ENOUGH:
        return Cause("rounded", "values differ in precision only; is a Float32 kept for a Float64?")
    steps = served - expected
    if found := _around(spec, steps):
        return found
    if (offset := _constant(steps)) is not None:
        return Cause("shifted", f"every value is off by {offset:+g}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = served / expected
    if (factor := _constant(ratios[np.isfinite(ratios)], len(ratios))) is not None:
        return Cause("scaled", f"every value is {factor:g} times what it should be: another unit?")
    return None


def _around(spec: FieldSpec, steps: npt.NDArray[np.float64]) -> Cause | None:
    """One step for all, counted around the feature's range: hours that cross midnight."""
    if spec.dtype != "int" or spec.minimum is None or spec.maximum is None:
        return None
    size = spec.maximum - spec.minimum + 1
    turned = np.mod(steps, size)
    turned = np.where(turned > size / 2, turned - size, turned)
    offset = _constant(turned)
    if offset is None or (turned == steps).all():
        return None
    span = f"{spec.minimum:g} to {spec.maximum:g}"
    return Cause("shifted", f"every value is off by {offset:+g}, counted around {span}: another time zone?")


def _constant(values: npt.NDArray[np.float64], rows: int | None = None) -> float | None:
    """The one value nearly all have, if they have one and it is not 0."""
    if not len(values):
        return None
    middle = float(np.median(values))
    share = np.isclose(values, middle, rtol=1e-9, atol=1e-9).sum() / (rows or len(values))
    return middle if share >= ENOUGH and middle != 0 else None


def _instant(offset: timedelta) -> Cause:
    when = "later" if offset > timedelta(0) else "earlier"
    return Cause("instant", f"the values are those of {describe(abs(offset))} {when}: another clock or time zone?")
