"""One fault after the other under constant load: is there always an answer in time, how soon is the service itself
again, and does every acknowledged prediction stand in the log?

Starts a bundle of its own (see ``arena.py``), calls it at a steady rate, and does to it what ``faults.py`` lists.
Last line of stdout: one JSON object; exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]  # carries no types

from benchmarks.arena import GATEWAY, Arena, arena
from benchmarks.audit import Answers, Ledger, Tail, check_answers, check_ledger, load_models, read_log
from benchmarks.caller import Call
from benchmarks.faults import FAULTS, LOGS, Fault, Seen
from benchmarks.servers import own_path
from deploy.demo import say
from service.settings import ROOT, Settings

GRACE_MS = 50.0
MOST_HEAL_S = 10.0
# Good answers, and scored rehearsals, in a row that count as "itself again".
ROW = 20
_GIVE_UP_S = 25.0
_POLL_S = 0.05
_SETTLE_S = 1.0
ROLES = ("primary", "fallback", "shadow")


class Callers:
    """The load, in a process of its own.

    Attributes:
        calls: what became of every request so far, in the order of the answers.
        stall_s: longest pause of that process itself, known at the end.
    """

    def __init__(self, url: str, bodies: Path, rate: float) -> None:
        command = [sys.executable, "-m", "benchmarks.caller", f"{url}/predict", "--bodies", str(bodies)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, "--rate", f"{rate:g}"], cwd=ROOT, env=own_path(), stdin=pipe, stdout=pipe, start_new_session=True
        )
        self.calls: list[Call] = []
        self.stall_s = 0.0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            plain = json.loads(line)
            if "stall_s" in plain:
                self.stall_s = plain["stall_s"]
            else:
                self.calls.append(Call(**plain))

    def since(self, begin: float, end: float = float("inf")) -> list[Call]:
        """Requests that fell due in a stretch of time."""
        return [c for c in self.calls if begin <= c.due < end]

    def finish(self) -> None:
        """Send nothing more, and wait for the answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(30)
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                stream.close()


@dataclass(frozen=True)
class Episode:
    """What one fault did.

    Attributes:
        begin, end: monotonic seconds; ``end`` is when the fault was undone, or done where it is the service's to undo.
        heal_s: from then until the service was itself again; None when it was not in time.
        felt: whether the fault had the effect it is about.
        busy: share of the machine's processors in use meanwhile, by whomever.
    """

    fault: Fault
    begin: float
    end: float
    heal_s: float | None
    felt: bool
    busy: float

    @property
    def healed(self) -> float:
        """When the service was itself again, or given up."""
        return self.end + (_GIVE_UP_S if self.heal_s is None else self.heal_s)


class Run:
    """A service under load, one fault after the other."""

    def __init__(self, ground: Arena, callers: Callers, workers: int) -> None:
        self._ground = ground
        self._callers = callers
        self._workers = workers
        self._tail = Tail(ground.settings.log_dir / "shadow")

    def suffer(self, fault: Fault) -> Episode:
        """Do one fault and wait until it is over."""
        drops, pids = sum(self._ground.series("understudy_log_dropped_total")), self._pids()
        psutil.cpu_percent()
        begin = time.monotonic()
        fault.act(self._ground)
        end = time.monotonic()
        heal = self.heal(end)
        time.sleep(_SETTLE_S)
        self._tail.look()
        after = self._pids()
        seen = Seen(
            self._callers.since(begin, end + (heal or _GIVE_UP_S)),
            self._tail.outcome,
            sum(self._ground.series("understudy_log_dropped_total")) - drops,
            frozenset(name for name in pids if pids[name] != after[name]),
        )
        return Episode(fault, begin, end, heal, fault.felt(seen), psutil.cpu_percent() / 100)

    def heal(self, since: float) -> float | None:
        """Seconds until everything is as before; None when it takes too long."""
        while (now := time.monotonic()) < since + _GIVE_UP_S:
            if self._answers(since) and self._rehearses(since) and self._complete():
                return now - since
            time.sleep(_POLL_S)
        return None

    def _answers(self, since: float) -> bool:
        last = self._callers.since(since)[-ROW:]
        return len(last) == ROW and all(_normal(c) for c in last)

    def _rehearses(self, since: float) -> bool:
        self._tail.look()
        outcomes = [self._tail.outcome.get(c.request_id) for c in self._callers.since(since)]
        while outcomes and outcomes[-1] is None:
            outcomes.pop()
        return len(outcomes) >= ROW and all(o == "scored" for o in outcomes[-ROW:])

    def _complete(self) -> bool:
        if self._ground.workers() != self._workers:
            return False
        return all(self._ground.series("understudy_runner_up", role=role) == [1.0] for role in ROLES)

    def _pids(self) -> dict[str, list[int]]:
        return {name: self._ground.pids(name) for name in (*ROLES, GATEWAY)}

    def drain(self) -> None:
        """Wait until the last requests have been rehearsed."""
        end, last = time.monotonic() + 10, [c.request_id for c in self._callers.calls[-ROW:]]
        while time.monotonic() < end and not all(name in self._tail.outcome for name in last):
            self._tail.look()
            time.sleep(_POLL_S)


def _normal(call: Call) -> bool:
    wanted = {"role": "primary", "confidence": "normal", "model_version": "1"}
    return call.status == 200 and wanted.items() <= call.answer.items()


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    calls: Sequence[Call]
    episodes: Sequence[Episode]
    answers: Answers
    ledger: Ledger
    excused: frozenset[str]
    limit_ms: float
    stall_s: float
    disk: str

    def row(self, begin: float, end: float) -> dict[str, Any]:
        """What callers saw in a stretch of time."""
        return told([c for c in self.calls if begin <= c.due < end], self.excused, self.limit_ms)

    def by_fault(self) -> dict[str, Any]:
        """One entry per fault."""
        begins = [e.begin for e in self.episodes[1:]] + [float("inf")]
        found = {}
        for episode, until in zip(self.episodes, begins, strict=True):
            heal = None if episode.heal_s is None else round(episode.heal_s, 2)
            row = self.row(episode.begin, until)
            meanwhile = [c for c in self.calls if episode.begin <= c.due < episode.healed]
            roles = Counter(str(c.answer.get("role", c.status)) for c in meanwhile)
            found[episode.fault.name] = {
                **row, "heal_s": heal, "felt": episode.felt, "busy": round(episode.busy, 2), "answered_by": dict(roles)
            }  # fmt: skip
        return found

    def result(self) -> dict[str, Any]:
        """The JSON object of the last line."""
        heals = [e.heal_s for e in self.episodes]
        by_fault = self.by_fault()
        everything = self.row(0.0, float("inf"))
        return {
            "faults": len(self.episodes),
            "requests": everything["requests"],
            "non_200": everything["non_200"],
            "late": everything["late"],
            "lost_acknowledged": self.answers.unexplained,
            "worst_heal_s": None if None in heals else max((row["heal_s"] for row in by_fault.values()), default=0.0),
            "ledger_exact": self.ledger.exact,
            "worst_ms": everything["worst_ms"],
            "p99_ms": everything["p99_ms"],
            "late_after_ms": self.limit_ms,
            "excused": len(self.excused),
            "unfelt": [e.fault.name for e in self.episodes if not e.felt],
            "disk": self.disk,
            "caller_stall_ms": round(self.stall_s * 1000, 1),
            "answers": asdict(self.answers),
            "ledger": asdict(self.ledger),
            "by_fault": by_fault,
        }


def told(calls: Sequence[Call], excused: frozenset[str], limit_ms: float) -> dict[str, Any]:
    """What callers were told: numbers of requests, of those without a 200, of late answers, and the worst times."""
    counted = [c for c in calls if c.request_id not in excused]
    taken = sorted(c.seconds * 1000 for c in counted if c.status)
    return {
        "requests": len(calls),
        "non_200": sum(c.status != 200 for c in counted),
        "excused": len(calls) - len(counted),
        "late": sum(ms > limit_ms for ms in taken),
        "p99_ms": round(taken[int(len(taken) * 0.99)], 1) if taken else None,
        "worst_ms": round(taken[-1], 1) if taken else None,
    }


def in_flight(calls: Sequence[Call], ground: Arena) -> frozenset[str]:
    """Ids of requests that were under way on a connection of a gateway worker when it was killed."""
    return frozenset(
        call.request_id
        for worker in ground.killed
        for call in calls
        if call.status == 0 and call.port in worker.ports and call.sent - 1.0 <= worker.at <= call.done
    )


def missed(result: Mapping[str, Any]) -> list[str]:
    """Every promise that was broken, one sentence each."""
    found = [f"{name}={result[name]}, not 0" for name in ("non_200", "late", "lost_acknowledged") if result[name]]
    if result["worst_heal_s"] is None or result["worst_heal_s"] > MOST_HEAL_S:
        found.append(
            f"worst_heal_s={result['worst_heal_s']}: the service must be itself again within {MOST_HEAL_S:g} s"
        )
    if not result["ledger_exact"]:
        found.append(f"ledger_exact=False: {result['ledger']}")
    answers = result["answers"]
    for name in ("different", "unasked", "twice", "wrong"):
        if answers[name]:
            found.append(f"answers.{name}={answers[name]}, not 0 (such as {', '.join(answers['examples'])})")
    if not answers["counted"] == answers["gaps"] == answers["missing"] - answers["unexplained"]:
        found.append(f"dropped records are not counted exactly: {answers}")
    found += [f"{name} was not felt: the fault had not the effect it is about" for name in result["unfelt"]]
    return found


def run(faults: Sequence[Fault], *, deadline_ms: float, rate: float, workers: int) -> Report:
    """Start everything, do every fault, stop everything, and compare."""
    say("a bundle of its own, Redis behind a proxy, and the service")
    with arena(deadline_ms, workers=workers) as ground:
        with Callers(ground.url, ground.home.parent / "requests.jsonl", rate) as callers:
            one = Run(ground, callers, workers)
            if one.heal(time.monotonic()) is None:
                raise SystemExit(f"the service does not answer as it should: {callers.calls[-1:]}")
            # The first seconds warm up connections, not the service.
            say(f"{rate:g} requests/s, {workers} gateway workers, deadline {deadline_ms:g} ms")
            print(HEADING, flush=True)
            episodes = []
            for fault in faults:
                episodes.append(one.suffer(fault))
                print_row(episodes[-1], callers.calls, in_flight(callers.calls, ground), deadline_ms + GRACE_MS)
            callers.finish()
            one.drain()
        calls, stall = callers.calls, callers.stall_s
        drops = {log: int(sum(ground.series("understudy_log_dropped_total", log=log))) for log in LOGS}
        counter = int(sum(ground.series("understudy_shadow_sampled_total")))
        excused = in_flight(calls, ground)
        read = {log: read_log([*ground.settings.log_dir.glob(f"{log}*"), ground.rescued / log]) for log in LOGS}
        seats = [seat for some in ground.seats.values() for seat in some.values()]
        return Report(
            calls=calls,
            episodes=episodes,
            answers=check_answers(
                calls, read["predictions"], counted=drops["predictions"], excused=excused,
                unwritable=[(e.begin, e.healed) for e in episodes if e.fault.logs],
                models=load_models(ground.settings.models_dir, seats),
            ),
            ledger=check_ledger(
                read["predictions"], read["shadow"], unwritten=drops["shadow"], counter=counter,
                killed=frozenset(worker.pid for worker in ground.killed),
            ),
            excused=excused,
            limit_ms=deadline_ms + GRACE_MS,
            stall_s=stall,
            disk="of its own" if ground.mounted else "limited by RLIMIT_FSIZE",
        )  # fmt: skip


HEADING = (
    f"{'fault':28} {'requests':>8} {'non-200':>7} {'excused':>7} {'late':>5} {'p99 ms':>7} {'worst ms':>8} "
    f"{'heal s':>7} {'busy':>5}  answered meanwhile"
)


def print_row(episode: Episode, calls: Sequence[Call], excused: frozenset[str], limit_ms: float) -> None:
    """Show one fault's line of the table."""
    row = told([c for c in calls if c.due >= episode.begin], excused, limit_ms)
    meanwhile = [c for c in calls if episode.begin <= c.due < episode.healed]
    by = Counter(f"{c.answer.get('role', 'nobody')} {c.answer.get('confidence', '')}".strip() for c in meanwhile)
    who = ", ".join(f"{n} {name}" for name, n in by.most_common())
    heal = "never" if episode.heal_s is None else f"{episode.heal_s:.2f}"
    print(f"{episode.fault.name:28} {row['requests']:8} {row['non_200']:7} {row['excused']:7} {row['late']:5} "
          f"{row['p99_ms'] or 0:7.1f} {row['worst_ms'] or 0:8.1f} {heal:>7} {episode.busy:5.0%}  {who}"
          f"{'' if episode.felt else '  NOT FELT'}", flush=True)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    known = {fault.name: fault for fault in FAULTS}
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").partition("\n")[0])
    default = Settings.model_fields["deadline_ms"].default
    parser.add_argument("--deadline-ms", type=float, default=default, help="the service's deadline for one answer")
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second")
    parser.add_argument("--workers", type=int, default=2, help="gateway workers")
    parser.add_argument("--only", action="append", choices=known, metavar="NAME", help=f"one of {', '.join(known)}")
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    warnings.simplefilter("ignore")
    faults = [known[name] for name in args.only] if args.only else FAULTS
    try:
        report = run(faults, deadline_ms=args.deadline_ms, rate=args.rate, workers=args.workers)
    except KeyboardInterrupt:
        print("chaos: stopped", file=sys.stderr)
        return 130
    result = report.result()
    broken = missed(result)
    print("\n".join(broken) or "every promise was kept", file=sys.stderr)
    print(json.dumps(result))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
