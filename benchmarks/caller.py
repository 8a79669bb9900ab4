"""Constant load that keeps what became of every single request; in a process of its own.

Open loop: requests fall due at a fixed rate whether answers came or not, and wait for a free connection when none is
there; a latency counts from then. One JSON line per request on stdout. Ends, once the answers it waits for are in,
when stdin ends. Times are seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop

_TICK_S = 0.002
_RETRY_S = 0.02
# Longer than any answer may take.
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Call:
    """One request and what became of it.

    Attributes:
        request_id: that was sent with it.
        due, sent, done: seconds; ``done`` is when the answer was there or the connection was lost.
        port: the caller's port of the connection.
        status: of HTTP; 0 when there was no answer.
        answer: its body.
        timing: its ``Server-Timing`` header.
    """

    request_id: str
    due: float
    sent: float
    done: float
    port: int
    status: int
    answer: dict[str, Any]
    timing: str = ""

    @property
    def seconds(self) -> float:
        """From falling due to the answer."""
        return self.done - self.due


@dataclass(frozen=True)
class _Due:
    number: int
    at: float


class Caller:
    """Sends requests to ``url`` round and round, each with an id of its own.

    Args:
        bodies: JSON objects without an id.
        rate: requests per second.
        connections: kept open.
        renew: answers after which a connection is replaced, so that new processes get their share.
    """

    def __init__(self, url: str, bodies: Sequence[bytes], *, rate: float, connections: int, renew: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._bodies = bodies
        self._rate = rate
        self._connections = connections
        self._renew = renew
        self.stall_s = 0.0
        self._waiting: deque[_Due] = deque()
        self._idle: deque[_Connection] = deque()
        self._under_way: dict[int, _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop; returns when every answer is in, or no longer waited for."""
        for _ in range(self._connections):
            await self._open()
        begun = before = time.monotonic()
        number = 0
        while not stop.is_set():
            now = time.monotonic()
            # A pause of this process is not the service's.
            self.stall_s = max(self.stall_s, now - before - _TICK_S)
            while number / self._rate <= now - begun:
                self._waiting.append(_Due(number, now))
                number += 1
            self._dispatch()
            sys.stdout.flush()
            before = now
            await asyncio.sleep(_TICK_S)
        end = time.monotonic() + _PATIENCE_S
        while (self._waiting or self._under_way) and time.monotonic() < end:
            self._dispatch()
            await asyncio.sleep(_TICK_S)
        for connection in list(self._under_way.values()):
            connection.give_up()
        for left in self._waiting:
            self.told(Call(_name(left.number), left.at, left.at, time.monotonic(), 0, 0, {}), left.number)
        sys.stdout.flush()

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            connection, due = self._idle.popleft(), self._waiting.popleft()
            body = self._bodies[due.number % len(self._bodies)]
            body = body[:-1] + f',"request_id":"{_name(due.number)}"}}'.encode()
            self._under_way[due.number] = connection
            connection.send(due, f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def told(self, call: Call, number: int) -> None:
        """Take what became of a request."""
        self._under_way.pop(number, None)
        sys.stdout.write(json.dumps(asdict(call)) + "\n")

    def ready(self, connection: _Connection) -> None:
        """A connection can take a request."""
        self._idle.append(connection)
        self._dispatch()

    def lost(self, connection: _Connection) -> None:
        """A connection has ended; another takes its place."""
        if connection in self._idle:
            self._idle.remove(connection)
        task = asyncio.ensure_future(self._open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_connection(lambda: _Connection(self, self._lifetime()), self.host, self.port)
            except OSError:
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def _lifetime(self) -> int:
        # Not all at the same time.
        self._opened += 1
        return self._renew + self._opened % self._connections * 2


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, caller: Caller, lifetime: int) -> None:
        self._caller = caller
        self._left = lifetime
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._due: _Due | None = None
        self._sent = 0.0
        self._port = 0
        self._body = b""
        self._timing = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports inherit from none of asyncio's (0.23).
        self._transport = cast("asyncio.Transport", transport)
        self._port = transport.get_extra_info("sockname")[1]
        self._caller.ready(self)

    def send(self, due: _Due, message: bytes) -> None:
        self._due, self._body, self._timing, self._sent = due, b"", "", time.monotonic()
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._end(self._parser.get_status_code())
        self._left -= 1
        if self._left > 0 and self._parser.should_keep_alive():
            self._caller.ready(self)
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._end(0)
        self._caller.lost(self)

    def give_up(self) -> None:
        """Wait no longer."""
        self._end(0)
        self._transport.abort()

    def _end(self, status: int) -> None:
        due, self._due = self._due, None
        if due is None:
            return
        try:
            answer = json.loads(self._body) if status else {}
        except ValueError:
            answer = {"unreadable": self._body.decode(errors="replace")}
        call = Call(_name(due.number), due.at, self._sent, time.monotonic(), self._port, status, answer, self._timing)
        self._caller.told(call, due.number)


def _name(number: int) -> str:
    return f"chaos-{number:07d}"


async def run(caller: Caller) -> None:
    """Call until stdin ends; the last line tells this process's own longest pause."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    waiting = loop.run_in_executor(None, wait)
    await caller.run(stop)
    print(json.dumps({"stall_s": caller.stall_s}), flush=True)
    await waiting


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. One JSON line per request, then one on this process itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caller", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="endpoint on loopback")
    parser.add_argument("--bodies", type=Path, required=True, help="file of request bodies, one JSON object a line")
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--renew", type=int, default=30, help="answers after which a connection is replaced")
    args = parser.parse_args(argv)
    bodies = args.bodies.read_bytes().splitlines()
    caller = Caller(args.url, bodies, rate=args.rate, connections=args.connections, renew=args.renew)
    # A collection's pause here would look like one of the service.
    gc.disable()
    uvloop.run(run(caller))
    return 0


if __name__ == "__main__":
    sys.exit(main())
