"""Holds what callers were told against what the logs say. Files in, frozen findings out."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.caller import Call
from service.errors import PackageError
from service.package import PackagedModel, load_package
from service.roles import Seat

_WRITER = re.compile(r"(?P<process>.*-(?P<pid>\d+)-[0-9a-f]+)-\d+\.jsonl$")
TOLD = ("prediction", "role", "model_version", "confidence", "fallback_reason")


@dataclass(frozen=True)
class Line:
    """One record of a log, and which process wrote it."""

    record: Mapping[str, Any]
    process: str
    pid: int


@dataclass(frozen=True)
class LogLines:
    """A log's records, what could not be read, and how many records its numbering misses.

    Attributes:
        torn: lines that are no JSON object, torn tails included.
        missed: records that each process, by id, was to write and did not, by the ``seq`` of those after them.
    """

    lines: Sequence[Line] = ()
    torn: int = 0
    missed: Mapping[int, int] = field(default_factory=dict)

    @property
    def gaps(self) -> int:
        """Missed records of all processes."""
        return sum(self.missed.values())

    @property
    def by_id(self) -> dict[str, Line]:
        """The last line of each request."""
        return {str(line.record["request_id"]): line for line in self.lines}


def read_log(folders: Iterable[Path]) -> LogLines:
    """Read every segment below some folders.

    Who finds that a segment was deleted while a record went into it writes that record again, into the next one: both
    are one record, which only somebody who kept the deleted segment can see twice.
    """
    lines: list[Line] = []
    homes: dict[tuple[str, int], Path] = {}
    torn, numbers, last, pids = 0, Counter[str](), defaultdict[str, int](int), dict[str, int]()
    for path in sorted(p for folder in folders for p in folder.glob("*.jsonl")):
        found = _WRITER.search(path.name)
        process, pid = (found["process"], int(found["pid"])) if found else (path.name, 0)
        pids[process] = pid
        for text in path.read_bytes().splitlines():
            try:
                record = dict(json.loads(text))
            except ValueError:
                torn += 1
                continue
            seq = record.get("seq", 0)
            last[process] = max(last[process], seq)
            if not record.get("closed") and homes.setdefault((process, seq), path) == path:
                numbers[process] += 1
                lines.append(Line(record, process, pid))
    missed = Counter[int]()
    for process, number in last.items():
        missed[pids[process]] += max(0, number - numbers[process])
    return LogLines(lines, torn, missed)


@dataclass(frozen=True)
class Answers:
    """How acknowledged predictions and the prediction log agree.

    Attributes:
        acknowledged: answers with status 200.
        missing: acknowledged ones without a line.
        counted: drops the service counted; ``gaps``: drops the numbering of the lines shows.
        unexplained: missing ones beyond those counted, and any that were asked while the log could be written.
        different: lines that say something else than the caller was told.
        unasked: lines without an acknowledged answer, not in flight at the kill of a worker.
        twice: lines of a request that already has one.
        wrong: answers that their model does not give for the logged vector.
    """

    acknowledged: int
    missing: int
    counted: int
    gaps: int
    unexplained: int
    different: int
    unasked: int
    twice: int
    wrong: int
    examples: Sequence[str] = ()


def check_answers(
    calls: Sequence[Call],
    log: LogLines,
    *,
    counted: int,
    unwritable: Sequence[tuple[float, float]],
    excused: frozenset[str],
    models: Mapping[str, PackagedModel],
) -> Answers:
    """Compare.

    Args:
        counted: predictions the service says it could not log.
        unwritable: stretches of monotonic seconds in which the log could not be written.
        excused: ids of the requests in flight at the kill of a worker.
        models: by digest.
    """
    told = {call.request_id: call for call in calls if call.status == 200}
    lines = log.by_id
    missing = [call for name, call in told.items() if name not in lines]
    outside = [c for c in missing if not any(start <= c.done and c.due <= end for start, end in unwritable)]
    beyond = max(0, len(missing) - len(outside) - counted)
    different = [n for n, c in told.items() if n in lines and _differs(c.answer, lines[n].record)]
    unasked = [name for name in lines if name not in told and name not in excused]
    wrong = _wrong(lines, models)
    examples = [c.request_id for c in outside[:3]] + different[:3] + unasked[:3] + wrong[:3]
    return Answers(
        len(told), len(missing), counted, log.gaps, len(outside) + beyond, len(different), len(unasked),
        len(log.lines) - len(lines), len(wrong), tuple(examples),
    )  # fmt: skip


def _differs(answer: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return any(answer.get(name) != record.get(name) for name in TOLD)


def _wrong(lines: Mapping[str, Line], models: Mapping[str, PackagedModel]) -> list[str]:
    by_model: dict[str | None, list[str]] = defaultdict(list)
    for name, line in lines.items():
        if line.record["role"] != "none":
            by_model[line.record["model_digest"]].append(name)
    found = []
    for digest, names in by_model.items():
        model = models.get(str(digest))
        # One by one: a broken model may give one score for however many rows.
        scores = [model.score([lines[n].record["vector"]])[0] for n in names] if model else [math.nan] * len(names)
        found += [n for n, s in zip(names, scores, strict=True) if not math.isclose(s, lines[n].record["prediction"])]
    return found


@dataclass(frozen=True)
class Ledger:
    """How sampled predictions and shadow records agree.

    Attributes:
        sampled: logged predictions that the shadow was to rehearse.
        scored: shadow records with a score; ``dropped``: the others, by reason.
        unwritten: shadow records the service counted as not written.
        killed: sampled predictions without a record, of a gateway worker that was killed with them in its queue.
        unexplained: those without a record beyond ``unwritten`` and ``killed``.
        unsampled: records of requests that were not sampled; ``twice``: of requests that already have one.
        counter: what the service counted as sampled.
    """

    sampled: int
    scored: int
    dropped: Mapping[str, int]
    unwritten: int
    killed: int
    unexplained: int
    unsampled: int
    twice: int
    counter: int

    @property
    def exact(self) -> bool:
        """Whether nothing is left over."""
        return not (self.unexplained or self.unsampled or self.twice)


def check_ledger(
    predictions: LogLines, shadow: LogLines, *, unwritten: int, counter: int, killed: frozenset[int]
) -> Ledger:
    """Compare; ``killed`` are the process ids of gateway workers that were killed."""
    sampled = {n: line for n, line in predictions.by_id.items() if line.record["shadow_sampled"]}
    records = shadow.by_id
    missing = [line for name, line in sampled.items() if name not in records]
    # What a worker could not write before it was killed is among the unwritten already.
    queued = max(0, sum(line.pid in killed for line in missing) - sum(shadow.missed.get(pid, 0) for pid in killed))
    dropped = Counter(str(r.record["reason"]) for r in records.values() if r.record["outcome"] != "scored")
    return Ledger(
        sampled=len(sampled),
        scored=sum(r.record["outcome"] == "scored" for r in records.values()),
        dropped=dict(dropped),
        unwritten=unwritten,
        killed=queued,
        unexplained=abs(len(missing) - queued - unwritten),
        unsampled=len(set(records) - set(sampled)),
        twice=len(shadow.lines) - len(records),
        counter=counter,
    )


def load_models(models_dir: Path, seats: Iterable[Seat]) -> dict[str, PackagedModel]:
    """Load packages by digest; one that cannot be trusted is left out, as no answer may come from it."""
    found = {}
    for seat in seats:
        try:
            found[seat.digest] = load_package(models_dir / seat.package, seat.version, seat.digest)
        except PackageError:
            continue
    return found


@dataclass
class Tail:
    """Follows the shadow's log while it grows: what became of each request.

    Attributes:
        outcome: ``scored`` or ``dropped``, by request id.
    """

    folder: Path
    outcome: dict[str, str] = field(default_factory=dict)
    _read: dict[tuple[int, int], int] = field(default_factory=dict)

    def look(self) -> None:
        """Read what is new."""
        for path in self.folder.glob("*.jsonl"):
            try:
                self._one(path)
            except OSError:  # taken away by the fault of the moment
                continue

    def _one(self, path: Path) -> None:
        with path.open("rb") as file:
            key = (path.stat().st_dev, path.stat().st_ino)
            file.seek(self._read.get(key, 0))
            whole, _, rest = file.read().rpartition(b"\n")
            self._read[key] = file.tell() - len(rest)
        for text in whole.splitlines():
            try:
                record = json.loads(text)
                self.outcome[record["request_id"]] = record["outcome"]
            except (ValueError, KeyError):
                continue
