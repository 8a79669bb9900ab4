"""What changed between the contract a model was trained on and the one it would be served with.

A limit that got looser lets values through that training never saw; a function that changed computes something else
than the model learned from. Either is training-serving skew by definition, and is refused when a Bento is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Literal

from service.contract import Contract
from service.errors import ContractError
from service.package import read_package
from service.roles import Role, read_roles
from service.settings import Settings
from service.vector import describe

Kind = Literal["breaking", "looser", "tighter"]
_SPANS = ("ttl", "max_staleness", "earliest", "latest")
REFUSED: tuple[Kind, ...] = ("breaking", "looser")


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        where: the field, view or on-demand view.
        what: the property that changed.
        before, after: its value in the model's contract and in the definitions; None for no limit.
        kind: ``breaking`` (the model would be given something else), ``looser``, ``tighter``.
    """

    where: str
    what: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        before, after = (_shown(self.what, value) for value in (self.before, self.after))
        return f"{self.kind:8} {self.where}: {self.what} {before} -> {after}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare two contracts as :meth:`Contract.record` gives them; what a model does not use is no change. Pure."""
    found: list[Change] = []
    for what in ("output", "positive"):
        if before[what] != after[what]:
            found.append(Change(before["name"], what, before[what], after[what], "breaking"))
    for part, compare in (("keys", _fields), ("inputs", _fields), ("fields", _fields), ("views", _views)):
        found += _named(before[part], after[part], compare)
    found += _named(before["on_demand"], after["on_demand"], _functions)
    # A key that is a feature too stands in both lists.
    return [change for place, change in enumerate(found) if change not in found[:place]]


def of_roles(settings: Settings, contracts: Mapping[str, Contract]) -> dict[Role, list[Change]]:
    """Compare every seated model's contract with the definitions.

    Raises:
        PackageError: when a package cannot be trusted.
        NotReady: when the roles cannot be read.
    """
    answer: dict[Role, list[Change]] = {}
    for role, seat in read_roles(settings.models_dir).seats.items():
        before = json.loads(read_package(settings.models_dir / seat.package, seat.digest)["contract.json"])
        name = before["name"]
        if name in contracts:
            answer[role] = changes(before, contracts[name].record())
        else:
            answer[role] = [Change(name, "feature service", "defined", None, "breaking")]
    return answer


def refuse(settings: Settings, contracts: Mapping[str, Contract]) -> None:
    """Stop a build whose models were trained under a stricter contract.

    Raises:
        ContractError: names role, limit, and both values.
    """
    lines = [
        f"{role}: {change}"
        for role, found in of_roles(settings, contracts).items()
        for change in found
        if change.kind in REFUSED
    ]
    if lines:
        listed = "; ".join(" ".join(line.split()) for line in lines)
        msg = f"the definitions no longer fit the seated models ({listed}); run `make train` or take the change back"
        raise ContractError(msg)


def _named(before: list[Any], after: list[Any], compare: Any) -> Iterator[Change]:
    now = {entry["name"]: entry for entry in after}
    for entry in before:
        if entry["name"] in now:
            yield from compare(entry, now[entry["name"]])
        else:
            yield Change(entry["name"], "definition", "present", None, "breaking")


def _fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    name = before["name"]
    for what in ("dtype", "categorical"):
        if before[what] != after[what]:
            yield Change(name, what, before[what], after[what], "breaking")
    if before["nullable"] != after["nullable"]:
        yield Change(name, "nullable", before["nullable"], after["nullable"], _kind(after["nullable"]))
    for what in ("minimum", "earliest"):
        yield from _limit(name, what, before[what], after[what], lower=True)
    for what in ("maximum", "latest"):
        yield from _limit(name, what, before[what], after[what], lower=False)
    old, new = set(before["allowed"]), set(after["allowed"])
    if old != new:
        looser = bool(old) and (not new or not new <= old)
        yield Change(name, "allowed", sorted(old) or None, sorted(new) or None, _kind(looser))


def _views(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    name = before["name"]
    if before["keys"] != after["keys"]:
        yield Change(name, "keys", before["keys"], after["keys"], "breaking")
    for lost in sorted(set(before["features"]) - set(after["features"])):
        yield Change(name, "feature", lost, None, "breaking")
    for what in ("ttl", "max_staleness"):
        yield from _limit(name, what, before[what], after[what], lower=False)
    if before["policy"] != after["policy"]:
        yield Change(name, "policy", before["policy"], after["policy"], _kind(after["policy"] == "tolerate"))


def _functions(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    if before["code"] != after["code"]:
        yield Change(before["name"], "code", *_first_difference(before["code"], after["code"]), "breaking")
    for what in ("inputs", "sources"):
        if before[what] != after[what]:
            yield Change(before["name"], what, before[what], after[what], "breaking")


def _limit(name: str, what: str, before: Any, after: Any, *, lower: bool) -> Iterator[Change]:
    if before == after:
        return
    added_or_lost = before is None or after is None
    looser = after is None if added_or_lost else (after < before) is lower
    yield Change(name, what, before, after, _kind(looser))


def _kind(looser: bool) -> Kind:
    return "looser" if looser else "tighter"


def _shown(what: str, value: Any) -> str:
    if value is None:
        return "none"
    if what in _SPANS:
        return describe(timedelta(seconds=value))
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_difference(before: str, after: str) -> tuple[str, str]:
    pairs = zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
    return next((a.strip(), b.strip()) for a, b in pairs if a != b)
