"""This project's service against a stock BentoML endpoint and a hand-written service, and with and without a shadow.

All serve the same model file with one worker on loopback; ours does with everything on what the others leave out or do
in line. What is compared runs in turns, and a ratio is taken within a round, so that a busy machine bends both sides.
What is not measured stands idle. Last line of stdout: one JSON object; exit code 1 when a limit is missed.

The shadow's price is judged at half of the peak rate, in an open loop: both sides get the same requests at the same
times. Ratios in a closed loop of 16 connections, where the gateway has no idle moment and a caller sets its own rate by
the answers, and of one, are printed beside it. With and without are the same processes under the same load, in turns of
seconds: two processes of the same program differ by up to 5 % for as long as they live, and a machine shared with
others by more from one minute to the next. Half of all ids are sampled; in a turn with the shadow every request has one
of these, in one without none has, and what still waits for the shadow is dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.answers import Contender, agree, metrics, normal_share
from benchmarks.figures import Run, against_others, beside, faults, middle, ratio, stage_p99s
from benchmarks.machine import QUIET, Machine, stopped_shadow
from benchmarks.servers import handwritten, loaded, ours, stock, stop_what_was_started
from benchmarks.stage import prepared
from benchmarks.turns import Turns
from deploy.demo import say
from service.sampling import Sampling

CONNECTIONS = (1, 16)
# Rounds in a closed loop, which are printed and not judged.
_FEW_ROUNDS = 4
# What is compared with and without a shadow.
_COMPARED = ("p50", "p99")
# As many as an open loop could need at once.
OPEN = 64
# Longest time spent waiting for a machine that is busy with something else, and measuring again what that disturbed.
PATIENCE_S = 60.0
# Share of all ids that is sampled, and how many requests with and without such an id are made.
_SAMPLED, _NAMED = 0.5, 20_000
_TOKEN = "of-the-benchmark"


@dataclass(frozen=True)
class Length:
    """How many rounds, and how many seconds of each that count."""

    rounds: int
    shadow_rounds: int
    seconds: float


@dataclass(frozen=True)
class _Kind:
    """A kind of shadow.

    Attributes:
        models: folder of its models.
        settled_s: time after which a turn with it is like any later one.
        seconds: of such a turn that count.
        share: of the rounds; some turns take longer than others.
    """

    name: str
    models: str
    settled_s: float
    seconds: float
    share: float = 1.0


_KINDS = (
    _Kind("shadow", "models", 0.5, 1.5),
    # Its queue fills, and it uses up what it had saved.
    _Kind("slow_shadow", "slow/models", 2.5, 2.0),
    # A stopped one is killed after three seconds; the one that is started in its place is stopped too.
    _Kind("dead_shadow", "models", 5.0, 2.0, 0.5),
)
_OFF_SETTLED_S, _OFF_S = 0.5, 1.5


class _Stage:
    """A service whose shadow is asked in one turn and not in the next."""

    def __init__(self, kind: _Kind, url: str, folder: Path) -> None:
        self.kind, self.url, self._folder = kind, url, folder

    @contextlib.contextmanager
    def turn(self, load: Turns, *, asked: bool) -> Iterator[None]:
        """Have the shadow asked about every request, or about none; the block begins when that has settled."""
        dead = asked and self.kind.name == "dead_shadow"
        self._breaker("auto" if asked else "forced_open")
        load.take(int(asked))
        with stopped_shadow(self._folder, self.kind.settled_s) if dead else contextlib.nullcontext():
            time.sleep(self.kind.settled_s if asked else _OFF_SETTLED_S)
            yield
        if dead:
            self._wait_until_it_is_back()

    def _breaker(self, mode: str) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_TOKEN}"}
        body = json.dumps({"role": "shadow", "mode": mode}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/admin/breakers", body, headers), timeout=30):
            pass

    def _wait_until_it_is_back(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while metrics(self.url).get('understudy_runner_up{role="shadow"}') != 1:
            if time.monotonic() > end:
                raise SystemExit(f"the shadow of {self.url} did not come back")
            time.sleep(0.1)
        # What a start leaves to do.
        time.sleep(1.0)


class Bench:
    """One run of the benchmark over a prepared folder."""

    def __init__(self, home: Path, length: Length) -> None:
        self._home = home
        self._length = length
        self._requests = home / "requests.jsonl"
        self._machine = Machine(home, PATIENCE_S)
        self.servers = 1
        self.peak = 0.0
        self.normal_share = 1.0
        self.idle = 0.0
        self.non_200 = 0
        self.disturbed = 0

    def settle(self, servers: int) -> None:
        """Note how many servers run now, and show that idle ones leave the processor to the one measured."""
        self.servers = servers
        self._machine.calm(servers)
        idle, others = self._machine.shares(3.0)
        print(f"{servers} idle services use {idle:.1%} of a core, others {others:.1%}", flush=True)
        self.idle = max(self.idle, idle)

    def versus(self, urls: dict[str, str]) -> dict[str, Any]:
        """Ours, stock and hand-written in turns, at one and at 16 connections."""
        bodies = {"stock_bentoml": self._home / "vectors.jsonl"}
        some = [Contender(name, url, bodies.get(name, self._requests)) for name, url in urls.items()]
        agree(some)
        runs: dict[str, dict[int, list[Run]]] = {c.name: {n: [] for n in CONNECTIONS} for c in some}
        for number in range(self._length.rounds):
            for count in CONNECTIONS:
                for contender in some[number % 3 :] + some[: number % 3]:
                    run = self._measure(contender, f"{count} connections", connections=count)
                    runs[contender.name][count].append(run)
        return against_others(runs)

    def shadows(self) -> dict[str, Any]:
        """Each kind of shadow, between two turns without one.

        ``off_*_ratio`` compares turns without a shadow among themselves: what the machine adds to any ratio.
        """
        result: dict[str, Any] = {}
        alone: list[tuple[Run, Run, Run]] = []
        kinds = self._named()
        for kind in _KINDS:
            say(f"with and without: {kind.name.replace('_', ' ')}")
            with self._stage(kind) as stage:
                figures, off = self._beside(stage, kinds)
            result |= figures
            alone += zip(off[1:-1], off, off[2:], strict=False)
        return (
            result | beside("off", alone) | {"off_ms_half": {k: middle([a for a, _, _ in alone], k) for k in _COMPARED}}
        )

    def _named(self) -> tuple[Path, Path]:
        """Write the requests with ids that are not sampled, and with ids that are."""
        sampling = Sampling(_SAMPLED)
        bodies = self._requests.read_bytes().splitlines()
        named: dict[bool, list[bytes]] = {False: [], True: []}
        numbers = itertools.count()
        while min(map(len, named.values())) < _NAMED:
            name = f"bench-{next(numbers):06d}"
            some = named[sampling.takes(name, {})]
            some.append(bodies[len(some) % len(bodies)][:-1] + f',"request_id":"{name}"}}\n'.encode())
        paths = self._home / "run" / "not_sampled.jsonl", self._home / "run" / "sampled.jsonl"
        for path, some in zip(paths, named.values(), strict=True):
            path.write_bytes(b"".join(some))
        return paths

    @contextlib.contextmanager
    def _stage(self, kind: _Kind) -> Iterator[_Stage]:
        # The sample the primary is asked again for is drawn by the same ids: it would be on one side only.
        chosen = {"UNDERSTUDY_SHADOW_SAMPLE": f"{_SAMPLED}", "UNDERSTUDY_NOISE_SAMPLE": "0"}
        models = self._home / kind.models
        with ours(self._home, kind.name, models=models, UNDERSTUDY_ADMIN_TOKEN=_TOKEN, **chosen) as url:
            self.settle(1)
            yield _Stage(kind, url, self._home / "run" / kind.name)
            self.normal_share = min(self.normal_share, normal_share(url))

    def _beside(self, stage: _Stage, kinds: tuple[Path, Path]) -> tuple[dict[str, Any], list[Run]]:
        # Just before, because the machine's speed changes.
        alone = Contender("alone", stage.url, kinds[0])
        peak = self._measure(alone, "16 connections", connections=16)["rps"]
        with Turns(stage.url, kinds, connections=OPEN, rate=round(peak / 2)) as load:
            on: list[Run] = []
            off = [self._turn(load, stage, "half of peak", asked=False)]
            for _ in range(round(self._length.shadow_rounds * stage.kind.share)):
                on.append(self._turn(load, stage, "half of peak", asked=True))
                off.append(self._turn(load, stage, "half of peak", asked=False))
        figures = beside(stage.kind.name, list(zip(on, off, off[1:], strict=False)))
        for count in CONNECTIONS:
            with Turns(stage.url, kinds, connections=count) as load:
                pairs = [
                    [self._turn(load, stage, f"{count} connections", asked=asked) for asked in (True, False)]
                    for _ in range(_FEW_ROUNDS)
                ]
            some, none = zip(*pairs, strict=True)
            figures |= {f"{stage.kind.name}_{key}_ratio_{count}": ratio(some, none, key) for key in _COMPARED}
        return figures, off

    def _turn(self, load: Turns, stage: _Stage, about: str, *, asked: bool) -> Run:
        with stage.turn(load, asked=asked):
            for attempt in range(3):
                before = self._machine.spent()
                run = load.window(stage.kind.seconds if asked else _OFF_S)
                _, others = self._machine.spent().since(before)
                self.non_200 += run["non_200"]
                again = others > QUIET and self._machine.patient and attempt < 2
                print(_line(stage.kind.name if asked else "none", about, run, others, again=again), flush=True)
                if not again:
                    break
        self.disturbed += others > QUIET
        return run

    def stages(self, url: str) -> dict[str, Any]:
        """The 99th percentile of each stage at 70 % of the peak."""
        contender = Contender("ours", url, self._requests)
        options = {"connections": OPEN, "rate": round(0.7 * self.peak), "stages": True}
        runs = [self._measure(contender, "70 % of peak", 2 * self._length.seconds, **options) for _ in range(3)]
        for run in runs:
            for name, found in run["stages"].items():
                print(
                    f"    stage {name:9} p50 {found['p50']:7.3f}  p99 {found['p99']:7.3f}  max {found['max']:7.3f} ms"
                )
        return {"stage_p99_ms": stage_p99s(runs), "p99_ms_70": middle(runs, "p99")}

    def two_workers(self) -> dict[str, Any]:
        """Ours with two workers; printed, not judged."""
        with ours(self._home, "two", UNDERSTUDY_WORKERS="2") as url:
            contender = Contender("ours, 2 workers", url, self._requests)
            runs = [self._measure(contender, "16 connections", connections=16) for _ in range(3)]
        return {"ours_2_workers_rps_16": middle(runs, "rps"), "ours_2_workers_p99_ms_16": middle(runs, "p99")}

    def _measure(self, contender: Contender, load: str, seconds: float = 0, **options: Any) -> Run:
        total = 0.7 + (seconds or self._length.seconds)
        for attempt in range(3):
            self._machine.calm(self.servers)
            before = self._machine.spent()
            run = loaded(contender.url, contender.bodies, warmup=0.7, seconds=total, **options)
            _, others = self._machine.spent().since(before)
            self.non_200 += run["non_200"]
            again = others > QUIET and self._machine.patient and attempt < 2
            print(_line(contender.name, load, run, others, again=again), flush=True)
            if not again:
                break
        self.disturbed += others > QUIET
        return run


def _line(name: str, load: str, run: Run, others: float, *, again: bool) -> str:
    if not run["requests"]:
        raise SystemExit(f"{name} answered nothing; see its serve.log")
    times = f"p50 {run['p50']:7.3f}  p99 {run['p99']:7.3f}  max {run['max']:7.1f} ms"
    return f"{name:18} {load:15} {run['rps']:7.0f} /s   {times}   others {others:.2f} cores" + ", again" * again


def run(home: Path, length: Length) -> dict[str, Any]:
    """Measure everything in a prepared folder."""
    bench = Bench(home, length)
    begun = time.monotonic()
    say("start ours, stock BentoML and the hand-written service")
    with ours(home, "on") as on:
        with stock(home) as plain, handwritten(home) as hand:
            bench.settle(3)
            result = bench.versus({"ours": on, "stock_bentoml": plain, "handwritten": hand})
        bench.servers, bench.peak = 1, result["ours_rps_16"]
        say(f"stages at 70 % of {bench.peak:.0f} requests a second")
        result |= bench.stages(on)
        bench.normal_share = normal_share(on)
    result |= bench.shadows()
    result["normal_share"] = bench.normal_share
    say("two workers")
    result |= bench.two_workers()
    more = {"non_200": bench.non_200, "idle_cores": round(bench.idle, 3), "disturbed": bench.disturbed}
    return {**result, **more, "seconds": round(time.monotonic() - begun, 1)}


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    lines = ["", f"{'':16}{'rps at 16':>10}{'p50':>9}{'p99':>9}{'max ms':>9}{'p50 at 1':>10}{'p99 at 1':>10}"]
    for name in ("ours", "stock_bentoml", "handwritten"):
        parts = [result[f"{key}_ms_16"][name] for key in ("p50", "p99", "max")]
        parts += [result[f"{key}_ms_1"][name] for key in ("p50", "p99")]
        lines.append(f"{name:16}{result[f'{name}_rps_16']:10.0f}" + "".join(f"{p:9.2f}" for p in parts[:3])
                     + "".join(f"{p:10.2f}" for p in parts[3:]))  # fmt: skip
    lines += [f"ours: {result['ratio_vs_stock']} times stock, {result['ratio_vs_handwritten']} times hand-written; "
              f"{result['ours_2_workers_rps_16']:.0f} rps with two workers", ""]  # fmt: skip
    heads = (("half, p50", 13), ("95 %", 17), ("p99", 9), ("95 %", 17), ("16, p50", 12), ("p99", 8), ("1, p50", 9))
    lines.append(f"{'against none':16}" + "".join(f"{head:>{width}}" for head, width in heads) + f"{'p99':>8}")
    for name in ("off", "shadow", "slow_shadow", "dead_shadow"):
        line = f"{name:16}"
        for key, width in (("p50", 13), ("p99", 9)):
            low, high = result[f"{name}_{key}_ratio_95"]
            line += f"{result[f'{name}_{key}_ratio']:{width}.3f}{f'{low:.3f} to {high:.3f}':>17}"
        beside_it = [result.get(f"{name}_{key}_ratio_{load}") for load in (16, 1) for key in _COMPARED]
        lines.append(line + "".join(f"{v:{w}.3f}" for v, w in zip(beside_it, (12, 8, 9, 8), strict=True) if v))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make bench-serving", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, help="folder to prepare in or to use again; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the three services")
    parser.add_argument("--shadow-rounds", type=int, default=24, help="turns with and without a shadow")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement of the three services")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    stop_what_was_started()
    with tempfile.TemporaryDirectory() if args.home is None else contextlib.nullcontext(args.home) as name:
        result = run(prepared(Path(name).resolve()), Length(args.rounds, args.shadow_rounds, args.seconds))
    missed = faults(result)
    print(table(result))
    print("\n".join(missed) or "every limit is kept", file=sys.stderr)
    print(json.dumps(result))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
