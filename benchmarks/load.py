"""HTTP/1.1 load on loopback from a process of its own: keep-alive connections, every latency kept, one JSON line.

Closed loop (the default): each connection sends its next request as soon as it has an answer. Open loop
(``--rate``): requests fall due at a fixed rate whether answers came or not, and a latency counts from the moment a
request fell due, so that a slow answer is not hidden by the requests it kept from being sent ("coordinated omission",
Gil Tene).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import json
import re
import signal
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import numpy.typing as npt
import uvloop

# One part of a Server-Timing header: ``lookup;dur=0.812``.
_TIMING = re.compile(rb"([\w-]+);dur=([0-9.]+)")


@dataclass(frozen=True)
class Plan:
    """What to send.

    Attributes:
        url: of the endpoint; on loopback.
        bodies: request bodies, sent round and round.
        connections: kept open; in a closed loop also the number of requests under way.
        requests: most requests in all, those of the warm-up included.
        seconds: longest time spent, the warm-up included.
        warmup_s: answers of this first time are not counted.
        rate: requests per second of an open loop; 0 for a closed one.
        stages: whether to read every answer's ``Server-Timing``.
        progress_s: time between two lines on stderr; 0 for none.
    """

    url: str
    bodies: Sequence[bytes]
    connections: int
    requests: int
    seconds: float
    warmup_s: float = 0.0
    rate: float = 0.0
    stages: bool = False
    progress_s: float = 0.0


class Load:
    """A run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.host, self.port = _address(plan)
        self._messages = connection_messages(plan)
        self._latencies = array("d")
        self.stages: dict[bytes, array[float]] = {}
        self.statuses: Counter[int] = Counter()
        self.sent = self.answered = self.counted = self.errors = 0
        self.stall = 0.0
        self._begun = self._first = self._last = 0.0
        self._idle: deque[_Connection] = deque()
        self._all: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: asyncio.Future[None]

    async def run(self) -> None:
        """Send until the requests or the time are used up."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        for _ in range(self._plan.connections):
            self._all.append(await self._opened())
        self._begun = self._last = time.perf_counter()
        self._first = self._begun + self._plan.warmup_s
        end = loop.call_later(self._plan.seconds, self._finish)
        if self._plan.progress_s:
            self._tasks.add(asyncio.ensure_future(self._tell()))
        if self._plan.rate:
            self._idle.extend(self._all)
            # The loop's own timers are whole milliseconds (uvloop 0.23); the kernel's are exact.
            loop.add_signal_handler(signal.SIGALRM, self._send_due)
            signal.setitimer(signal.ITIMER_REAL, 1e-6, 1 / self._plan.rate)
        else:
            for connection in self._all:
                self.next(connection, self._begun)
        await self._done
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.remove_signal_handler(signal.SIGALRM)
        end.cancel()
        for task in self._tasks:
            task.cancel()
        for connection in self._all:
            connection.close()

    def next(self, connection: _Connection, now: float) -> None:
        """Give a connection without a request its next one."""
        if self._done.done():
            return
        if self._plan.rate:
            self._idle.append(connection)
            self._send_due()
        elif self.sent < self._plan.requests:
            self._send(connection, now)

    def _send_due(self) -> None:
        now = time.perf_counter()
        most = self._plan.requests
        while self._idle and self.sent < most and (due := self._begun + self.sent / self._plan.rate) <= now:
            self._send(self._idle.popleft(), due)

    def _send(self, connection: _Connection, due: float) -> None:
        message = self._messages[self.sent % len(self._messages)]
        self.sent += 1
        self.sending(due)
        connection.send(message, due)

    def sending(self, due: float) -> None:
        """A request that fell due then is on its way."""

    def received(self, due: float, now: float, status: int, timing: bytes | None) -> None:
        """Take one answer."""
        self.answered += 1
        if now - self._last > self.stall and now >= self._first:
            self.stall = now - max(self._last, self._first)
        self._last = now
        # By when it was sent: what waited during the warm-up would count otherwise.
        if due >= self._first:
            self._latencies.append(now - due)
            self.counted += 1
            self.statuses[status] += 1
            if timing:
                for name, milliseconds in _TIMING.findall(timing):
                    self.stages.setdefault(name, array("d")).append(float(milliseconds))
        if self.answered + self.errors >= self._plan.requests:
            self._finish()

    def lost(self, connection: _Connection, busy: bool) -> None:
        """A connection was closed by the other side."""
        if self._done.done():
            return
        self.errors += busy
        self._all.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self.answered + self.errors >= self._plan.requests:
            self._finish()
        else:
            task = asyncio.ensure_future(self._reopen())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reopen(self) -> None:
        try:
            connection = await self._opened()
        except OSError:
            self._finish()
            return
        self._all.append(connection)
        self.next(connection, time.perf_counter())

    async def _opened(self) -> _Connection:
        kind = _TimedConnection if self._plan.stages else _Connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: kind(self), self.host, self.port))[1]

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._plan.progress_s)
            line = {"answered": self.answered, "errors": self.errors, "seconds": time.perf_counter() - self._begun}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def result(self) -> dict[str, Any]:
        """What a run found: times in milliseconds, the rate in answers per second."""
        taken = np.asarray(self._latencies) * 1000
        spent = max(self._last - self._first, 1e-9)
        return {
            "requests": self.counted,
            "answered": self.answered,
            "errors": self.errors,
            "non_200": sum(n for status, n in self.statuses.items() if status != 200) + self.errors,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "seconds": round(spent, 3),
            "rps": round(self.counted / spent, 1),
            **summary(taken),
            "stall_ms": round(self.stall * 1000, 2),
            "stages": {name.decode(): summary(np.asarray(times)) for name, times in self.stages.items()},
            "client_cpu_share": round(time.process_time() / spent, 3),
        }


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._due = 0.0
        self._busy = False
        self._timing: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports inherit from none of asyncio's (0.23).
        self._transport = cast("asyncio.Transport", transport)

    def send(self, message: bytes, due: float) -> None:
        self._due, self._busy, self._timing = due, True, None
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self._busy = False
        self._load.received(self._due, now, self._parser.get_status_code(), self._timing)
        if self._parser.should_keep_alive():
            self._load.next(self, now)
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._load.lost(self, self._busy)

    def close(self) -> None:
        self._transport.close()


class _TimedConnection(_Connection):
    """One that reads an answer's headers too."""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value


def summary(milliseconds: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Percentiles of some durations; None without any."""
    names = ("p50", "p90", "p99", "p999")
    if not len(milliseconds):
        return dict.fromkeys([*names, "max"])
    found = np.percentile(milliseconds, [50, 90, 99, 99.9], method="higher")
    return {n: round(float(v), 3) for n, v in [*zip(names, found, strict=True), ("max", milliseconds.max())]}


def _address(plan: Plan) -> tuple[str, int]:
    parts = urlsplit(plan.url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not _on_loopback(host):
        msg = f"{plan.url} is not an http address on loopback; this program sends load nowhere else"
        raise ValueError(msg)
    return host, parts.port or 80


def connection_messages(plan: Plan) -> list[bytes]:
    """The plan's requests, as they are written to a connection."""
    if not plan.bodies or plan.requests < 1 or plan.seconds <= 0 or plan.connections < 1:
        msg = "at least one body, one request, one connection and some time are needed"
        raise ValueError(msg)
    parts = urlsplit(plan.url)
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for b in plan.bodies]


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="endpoint on loopback")
    parser.add_argument("--bodies", type=Path, required=True, help="file of request bodies, one JSON value a line")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1_000_000, help="most requests")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time")
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds of it that do not count")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second of an open loop; 0: closed loop")
    parser.add_argument("--stages", action="store_true", help="read Server-Timing")
    parser.add_argument("--progress", type=float, default=0.0, help="seconds between two lines on stderr; 0: none")
    args = parser.parse_args(argv)
    bodies = args.bodies.read_bytes().splitlines()
    plan = Plan(args.url, bodies, args.connections, args.requests, args.seconds, args.warmup, args.rate, args.stages,
                args.progress)  # fmt: skip
    try:
        load = Load(plan)
    except ValueError as error:
        parser.error(str(error))
    # A collection's pause here would look like one of the service.
    gc.disable()
    uvloop.run(load.run())
    print(json.dumps(load.result()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
