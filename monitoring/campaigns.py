"""Campaigns as records: what was compared with what, under which criteria, how often it was looked at, how it ended.

One file each, ``<state>/campaigns/<name>.json``, replaced in one rename. The rows are in the logs; what cannot be told
from them is here: the criteria declared at the opening, every look, and the opening itself once old logs are deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from monitoring.criteria import Criteria
from monitoring.evidence import Evidence, Version
from monitoring.standing import Standing
from monitoring.verdict import Decision, Verdict, decide
from service.errors import DataError
from service.journal import replace_text
from service.roles import locked

Status = Literal["open", "closed"]
Why = Literal["promoted", "rejected", "expired", "changed"]

KEPT_LOOKS = 400


@dataclass(frozen=True)
class Look:
    """One comparison: when by the clock, on how many labelled pairs, and what came of it."""

    at: datetime
    rows: int
    decision: Decision


@dataclass(frozen=True)
class Record:
    """One campaign.

    Attributes:
        name: the same at every look.
        slot: where the shadow rehearses.
        primary, shadow, contract: what it is about, by version and digest.
        service_versions: versions of the service that answered in it, so far.
        opened: its first prediction.
        criteria, maturity_h: digest of the criteria, and age of a mature label in hours, at the first look.
        status: ``closed`` campaigns are looked at all the same, as long as their models play.
        closed: when it was closed, by the clock.
        why: a verdict (``promoted``, ``rejected``), ``expired`` without one, or ``changed``: another model, slot or
            contract took over.
        looks: the newest ones.
        looked: how many there were.
    """

    name: str
    slot: str
    primary: Version
    shadow: Version
    contract: str
    service_versions: tuple[str, ...]
    opened: datetime
    criteria: str
    maturity_h: float
    status: Status = "open"
    closed: datetime | None = None
    why: Why | None = None
    looks: tuple[Look, ...] = ()
    looked: int = 0


_RECORD = TypeAdapter(Record)


def read_records(folder: Path) -> list[Record]:
    """Return every campaign on record, the oldest first.

    Raises:
        DataError: when a file cannot be read; what was declared in it must not be guessed.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_RECORD.validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            why = str(error).partition("\n")[0]
            msg = f"{path} cannot be read ({why}); restore it, or remove it and let the campaign begin anew"
            raise DataError(msg) from None
    return sorted(found, key=lambda record: (record.opened, record.name))


def write_record(folder: Path, record: Record) -> None:
    """Write one campaign's file."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(
        folder / f"{record.name}.json", json.dumps(asdict(record), indent=1, default=datetime.isoformat) + "\n"
    )


def judge(
    folder: Path, found: Evidence, criteria: Criteria, maturity_h: float, most_days: float, page: str
) -> tuple[Evidence, Verdict]:
    """Decide by the campaign's record as well as by its rows, and keep the look on record.

    Args:
        folder: of the records.
        maturity_h: age at which labels count as mature, in hours.
        most_days: age of an expired campaign, in days of the clock.
        page: file name of the page the reasons link to.

    Raises:
        DataError: when a record cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        known = read_records(folder)
        record = record_of(found, criteria.digest, maturity_h, known)
        stands = standing(record, criteria.digest, maturity_h, most_days)
        evidence = replace(found, opened=record.opened, standing=stands)
        verdict = decide(evidence, criteria, page)
        for each in (*superseded(record, known, evidence.as_of), looked(record, evidence, verdict)):
            write_record(folder, each)
    return evidence, verdict


def record_of(evidence: Evidence, criteria: str, maturity_h: float, known: Iterable[Record]) -> Record:
    """Return the record of the campaign the evidence is about: one that is known, or a new one.

    A known one goes on although its first rows have left the logs. It does not go on after rows of other models.
    """
    for record in known:
        if _same(record, evidence) and (record.opened == evidence.opened or not evidence.other_versions):
            return record
    return Record(
        name=evidence.campaign,
        slot=evidence.slot,
        primary=evidence.primary,
        shadow=evidence.shadow,
        contract=evidence.contract,
        service_versions=(),
        opened=evidence.opened,
        criteria=criteria,
        maturity_h=maturity_h,
    )


def standing(record: Record, criteria: str, maturity_h: float, most_days: float) -> Standing:
    """Say what the record adds to the evidence, judged by these criteria and at this maturity of labels."""
    judged = record.why in ("promoted", "rejected")
    changed = (record.criteria, record.maturity_h) != (criteria, maturity_h)
    return Standing(record.criteria, changed, None if judged else most_days)


def looked(record: Record, evidence: Evidence, verdict: Verdict) -> Record:
    """Add a look, and close the campaign when this look ends it.

    A limit raised afterwards opens an expired campaign again; a verdict stays the end.
    """
    found = evidence.performance
    look = Look(evidence.as_of, found.rows if found else 0, verdict.decision)
    after = replace(
        record,
        service_versions=tuple(sorted({*record.service_versions, *evidence.service_versions})),
        looks=(*record.looks, look)[-KEPT_LOOKS:],
        looked=record.looked + 1,
    )
    if record.why in ("promoted", "rejected"):
        return after
    why = _ending(evidence, verdict)
    if why is None:
        return replace(after, status="open", closed=None, why=None)
    return after if record.why == why else replace(after, status="closed", closed=evidence.as_of, why=why)


def superseded(current: Record, known: Sequence[Record], at: datetime) -> list[Record]:
    """Return, closed, the open campaigns whose slot another one has taken."""
    return [
        replace(record, status="closed", closed=at, why="changed")
        for record in known
        if record.slot == current.slot and record.name != current.name and record.status == "open"
    ]


def gone(models_dir: Path, evidence: Evidence) -> list[str]:
    """Say which of the two models has no package any more; its rows count all the same."""
    packages = models_dir / "packages"
    if not packages.is_dir():
        return []
    return [
        f"the package of the {role}'s version {model.version} ({model.digest[:12]}) is gone from {packages}: the "
        "campaign is judged by the logs, but the model cannot be promoted or brought back; train it again"
        for role, model in (("primary", evidence.primary), (evidence.slot, evidence.shadow))
        if model.digest and not (packages / model.digest[:16]).is_dir()
    ]


def _same(record: Record, evidence: Evidence) -> bool:
    ours = (evidence.slot, evidence.primary.digest, evidence.shadow.digest, evidence.contract)
    return record.why != "changed" and ours == (
        record.slot, record.primary.digest, record.shadow.digest, record.contract
    )  # fmt: skip


def _ending(evidence: Evidence, verdict: Verdict) -> Why | None:
    if verdict.decision == "promote":
        return "promoted"
    if verdict.decision == "reject":
        return "rejected"
    limit = evidence.standing.most_days if evidence.standing else None
    return "expired" if limit is not None and evidence.days > limit else None
