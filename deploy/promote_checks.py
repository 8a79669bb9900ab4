"""Does a verdict allow exactly this promotion? Verdict file and state in, checks with their numbers out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from deploy.moves import Check, named
from monitoring.verdict import Verdict
from service.roles import Seat

_VERDICT = TypeAdapter(Verdict)
_COMPARE, _SPLIT = "run `make compare`", "run `make split-verdict`"


@dataclass(frozen=True)
class Found:
    """A verdict as it was read.

    Attributes:
        verdict: None when there is none that can be read; ``problem`` says why.
        digest: computed from its content.
        named: the digest the file says it has.
        offline: whether it rests on replayed rows.
        again: how to make a new one.
    """

    path: Path
    verdict: Verdict | None = None
    digest: str = ""
    named: str = ""
    offline: bool = False
    problem: str = ""
    again: str = _COMPARE


@dataclass(frozen=True)
class Asked:
    """What a verdict must be about.

    Attributes:
        contract: digest of the primary's contract in the definitions.
        service: version of the service in this tree.
        used: digests of verdicts the history already knows, with the revision each led to.
    """

    primary: Seat
    candidate: Seat
    slot: str
    contract: str
    service: str
    now: datetime
    used: dict[str, int]


def verdict_file(reports: Path, slot: str, *, split: bool = False) -> Path:
    """Where the verdict on a slot's model, or on a split's treatment, is written."""
    if split:
        return reports / "split.json"
    return reports / ("compare.json" if slot == "shadow" else f"compare-{slot}.json")


def read_verdict(path: Path) -> Found:
    """Read a verdict, a campaign's or a split's, and compute its digest from what it says."""
    again = _SPLIT if path.name == "split.json" else _COMPARE
    try:
        plain = json.loads(path.read_text())
        told = dict(plain["verdict"])
        again = _SPLIT if plain.get("kind") == "split" else _COMPARE
        claimed = str(plain.get("digest") or told.get("digest", ""))
        verdict = _VERDICT.validate_python(told)
        content = _digest(told, verdict)
    except FileNotFoundError:
        return Found(path, problem=f"there is no verdict {path}; {again}", again=again)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        said = f"{path} holds no verdict ({type(error).__name__}: {first}); {again}"
        return Found(path, problem=said, again=again)
    offline = bool(plain.get("offline") or told.get("offline"))
    return Found(path, verdict, content, claimed, offline, again=again)


def checks(found: Found, asked: Asked) -> list[Check]:
    """Hold a verdict against the promotion it is to allow; every check names value, limit and fix."""
    verdict = found.verdict
    if verdict is None:
        return [Check("verdict", False, found.problem)]
    short, again = found.digest[:12], found.again
    services = ", ".join(verdict.service_versions) or "none"
    used = asked.used.get(found.digest)
    return [
        Check("whole", found.named == found.digest, _whole(found)),
        _check(
            "decision", verdict.decision == "promote",
            f"the verdict is {verdict.decision}" + _why(verdict), "only promote promotes",
        ),
        _check("offline", not found.offline, "the evidence is " + ("replayed" if found.offline else "live"),
               "offline evidence never promotes: let it rehearse on live requests"),
        _check("unused", used is None, f"verdict {short} " + (f"led to revision {used}" if used else "is unused"),
               f"a verdict promotes once: {again}"),
        _same("primary", verdict.primary, asked.primary, again),
        _same(asked.slot, verdict.shadow, asked.candidate, again),
        _check("contract", verdict.contract == asked.contract,
               f"judged on contract {verdict.contract[:12]}", f"the definitions are {asked.contract[:12]}; {again}"),
        _check("service", verdict.service_versions == (asked.service,), f"judged on service version {services}",
               f"this tree's is {asked.service}; serve it, send requests, then {again}"),
        _check("current", verdict.decided_at <= asked.now < verdict.expires_at,
               f"decided {_moment(verdict.decided_at)}, valid until {_moment(verdict.expires_at)}",
               f"the clock says {_moment(asked.now)}; {again} (on the same CLOCK)"),
    ]  # fmt: skip


def _check(name: str, holds: bool, value: str, otherwise: str) -> Check:
    return Check(name, holds, value if holds else f"{value}: {otherwise}")


def _same(role: str, judged: Any, seated: Seat, again: str) -> Check:
    holds = (judged.version, judged.digest) == (seated.version, seated.digest)
    said = f"judged version {judged.version} ({str(judged.digest)[:12]}) as {role}"
    return _check(role, holds, said, f"{role} is {named(seated)}; {again}")


def _whole(found: Found) -> str:
    if not found.named:
        return f"{found.path} does not name its digest (it is {found.digest[:12]}): {found.again} with this version"
    if found.named != found.digest:
        return (
            f"{found.path} says its digest is {found.named[:12]}, its content gives {found.digest[:12]}: "
            f"it was changed after it was written; {found.again}"
        )
    return f"verdict {found.digest[:12]} is whole"


def _why(verdict: Verdict) -> str:
    deciding = verdict.deciding
    return f" ({deciding[0].message})" if deciding and verdict.decision != "promote" else ""


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _digest(told: dict[str, Any], verdict: Verdict) -> str:
    """The digest :attr:`Verdict.digest` gives, of the values as the file has them: a whole number stays one."""
    values = {name: str(v) if isinstance(v, datetime) else told[name] for name, v in vars(verdict).items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
