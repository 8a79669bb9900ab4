"""One load on one service, with what is compared and without it in turns.

A machine shared with others changes its speed from second to second. Two runs, each with a start of its own, differ by
that; turns of a second or two under a load that never stops differ less, and there are more of them.

The process says ``ready`` with its first request, keeps every latency of a turn's window and prints one JSON line for
it. It reads commands, one a line: ``take N`` (send from the N-th file of bodies from now on), ``begin`` and ``end`` (a
window; by when requests fell due). It ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvloop

from benchmarks.load import Load, Plan, connection_messages, summary
from benchmarks.servers import own_path
from service.settings import ROOT

# An answer that comes later than this after its window counts as lost.
_PATIENCE_S = 5.0
_TICK_S = 0.02
# The longest run, and the most requests in it.
_LONGEST_S = 1800.0
_MOST = 10_000_000


class _Turned(Load):
    """A load that is told what to send and which of it counts."""

    def __init__(self, plan: Plan, kinds: Sequence[Sequence[bytes]]) -> None:
        super().__init__(plan)
        self._kinds = [connection_messages(replace(plan, bodies=bodies)) for bodies in kinds]
        self._from = self._until = math.inf
        self._times = array("d")
        self._due = self._bad = 0
        self._over = asyncio.Event()

    def told(self, command: str) -> None:
        """Do as the line says."""
        word, _, number = command.partition(" ")
        now = time.perf_counter()
        if word == "take":
            self._messages = self._kinds[int(number)]
        elif word == "begin":
            self._from, self._until = now, math.inf
            self._times, self._due, self._bad = array("d"), 0, 0
            self._over.clear()
        elif word == "end":
            self._until = now
            self._tasks.add(asyncio.ensure_future(self._say(now)))

    def over(self) -> None:
        """Send no more."""
        self._finish()

    def sending(self, due: float) -> None:
        if self.sent == 1:
            print("ready", flush=True)
        if due >= self._until:
            # Requests are sent in the order they fall due: all of the window have been.
            self._over.set()
        elif due >= self._from:
            self._due += 1

    def received(self, due: float, now: float, status: int, timing: bytes | None) -> None:
        super().received(due, now, status, timing)
        if self._from <= due < self._until:
            self._times.append(now - due)
            self._bad += status != 200

    async def _say(self, now: float) -> None:
        end = now + _PATIENCE_S
        while time.perf_counter() < end and not (self._over.is_set() and len(self._times) == self._due):
            await asyncio.sleep(_TICK_S)
        found = {
            "requests": len(self._times),
            "non_200": self._bad + self._due - len(self._times),
            "rps": round(len(self._times) / (self._until - self._from), 1),
            **summary(np.asarray(self._times) * 1000),
        }
        print(json.dumps(found), flush=True)


class Turns:
    """A load as long as the block lasts; sends the first kind of bodies until told otherwise.

    Args:
        url: of the service, on loopback.
        kinds: files of request bodies, one JSON value a line.
        connections: as in :class:`benchmarks.load.Plan`; so is ``rate``.
    """

    def __init__(self, url: str, kinds: Sequence[Path], *, connections: int, rate: float = 0.0) -> None:
        command = [sys.executable, "-m", "benchmarks.turns", f"{url}/predict", "--bodies", *map(str, kinds)]
        self._command = [*command, "--connections", str(connections), "--rate", f"{rate:.12g}"]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=own_path(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._heard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def take(self, kind: int) -> None:
        """Send the bodies of this file from now on."""
        self._tell(f"take {kind}")

    def window(self, seconds: float) -> dict[str, Any]:
        """Measure what falls due in the next seconds: percentiles in milliseconds, answers per second."""
        self._tell("begin")
        time.sleep(seconds)
        self._tell("end")
        return dict(json.loads(self._heard()))

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the load generator ended: {' '.join(self._command)}")
        return line

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()


async def _run(load: _Turned) -> None:
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(load.told, line.strip())
        loop.call_soon_threadsafe(load.over)

    listening = loop.run_in_executor(None, listen)
    await load.run()
    await listening


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; one JSON line for each window."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="endpoint on loopback")
    parser.add_argument("--bodies", type=Path, nargs="+", required=True, help="files of request bodies, one a line")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second of an open loop; 0: closed loop")
    args = parser.parse_args(argv)
    kinds = [path.read_bytes().splitlines() for path in args.bodies]
    try:
        load = _Turned(Plan(args.url, kinds[0], args.connections, _MOST, _LONGEST_S, 0.0, args.rate), kinds)
    except ValueError as error:
        parser.error(str(error))
    # A collection's pause here would look like one of the service.
    gc.disable()
    uvloop.run(_run(load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
