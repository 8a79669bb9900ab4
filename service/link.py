"""The private line between gateway and runner: JSON frames over a Unix socket in a folder only their user may enter.

BentoML starts and supervises the runners; calls do not go through its HTTP client, because that costs a millisecond
a call, fails calls when it renews its sessions, speaks pickle, and cannot be asked who is on the other end
(bentoml 1.4.39). A frame is a length (4 bytes, big-endian) and a JSON object:

=================  =============================================================================================
runner, unasked    ``{"hello": {"role", "version", "digest", "problem"}}`` on connecting and when the model changes
gateway            ``{"id", "end", "rows"}``; ``end`` is the monotonic second after which nobody wants the answer; with
                   ``"gently": true`` nobody waits for it either
runner             ``{"id", "version", "digest", "scores", "cpu_s"}`` or ``{"id", "error"}``, with ``"cpu_s"`` when it
                   was given up for lack of time
=================  =============================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import orjson

from service.pieces import Pieces, Row, TooLate

logger = logging.getLogger("understudy")

_LENGTH = struct.Struct(">I")
_LARGEST = 64 * 2**20
_RETRY_S = 0.1


class LinkDown(Exception):
    """The runner cannot be reached, or went away during the call."""


class RunnerRefused(Exception):
    """The runner answered that it cannot score; the text says why."""


class RunnerLate(TooLate, RunnerRefused):
    """The runner has begun, and given up because the time would not do."""


class _Frames(asyncio.Protocol):
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > _LARGEST:
                self._abort()
                return
            if len(self._buffer) < _LENGTH.size + size:
                return
            frame = bytes(self._buffer[_LENGTH.size : _LENGTH.size + size])
            del self._buffer[: _LENGTH.size + size]
            try:
                self.frame(orjson.loads(frame))
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                # Whoever sends this cannot be talked to; the other side connects anew.
                self._abort()
                return

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def send(self, message: Mapping[str, Any]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            data = orjson.dumps(message, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
            self.transport.write(_LENGTH.pack(len(data)) + data)

    def frame(self, message: Any) -> None:
        raise NotImplementedError


class Scorer(Protocol):
    """A runner's inside."""

    def score(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return ``version``, ``digest``, ``scores`` and ``cpu_s``; raises when it cannot."""
        ...

    def hello(self) -> dict[str, Any]:
        """Say who answers here."""
        ...


class LinkServer:
    """The runner's end: takes calls, one at a time, in the event loop.

    Args:
        cpu: processors that calls nobody waits for may take, 0 any: several rows are scored in pieces, with rests and
            other calls between them.
    """

    def __init__(self, path: Path, scorer: Scorer, *, cpu: float = 0.0) -> None:
        self._path = path
        self._scorer = scorer
        self._pieces = Pieces(scorer.score, cpu)
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()

    async def start(self) -> None:
        """Listen, in the place of whoever listened here before."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Peer(self._scorer, self._peers, self._pieces), str(self._path)
        )

    def announce(self) -> None:
        """Tell every gateway who answers here now."""
        for peer in self._peers:
            peer.send({"hello": self._scorer.hello()})

    async def close(self, linger_s: float) -> None:
        """Take no new gateways; go when the last has gone, or after ``linger_s`` seconds."""
        if self._server is not None:
            self._server.close()
        end = time.monotonic() + linger_s
        while self._peers and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for peer in list(self._peers):
            peer._abort()


class _Peer(_Frames):
    """One gateway, as its runner sees it."""

    def __init__(self, scorer: Scorer, peers: set[_Peer], pieces: Pieces) -> None:
        super().__init__()
        self._scorer = scorer
        self._peers = peers
        self._pieces = pieces
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peers.add(self)
        self.send({"hello": self._scorer.hello()})

    def connection_lost(self, _: Exception | None) -> None:
        self._peers.discard(self)

    def frame(self, message: Any) -> None:
        number = message["id"]
        # The clock is the machine's: a call that waited while this process was stopped or busy is not worth doing.
        if time.monotonic() >= message["end"]:
            self.send({"id": number, "error": "too late"})
            return
        rows = message["rows"]
        if message.get("gently") and len(rows) > 1:
            task = asyncio.get_running_loop().create_task(self._in_pieces(number, rows, message["end"]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            self.send({"id": number, **self._scorer.score(rows)})
        except Exception as error:  # a model may fail in any way; the gateway is told, and knows what to do
            self._refuse(number, error)

    async def _in_pieces(self, number: int, rows: Sequence[Row], end: float) -> None:
        try:
            self.send({"id": number, **await self._pieces.score(rows, end)})
        except TooLate as error:
            self.send({"id": number, "error": str(error), "cpu_s": error.cpu_s})
        except Exception as error:
            self._refuse(number, error)

    def _refuse(self, number: int, error: Exception) -> None:
        self.send({"id": number, "error": f"{type(error).__name__}: {error}"})


class Link:
    """The gateway's end: stays connected, and fails calls at once while it cannot be.

    Args:
        path: the runner's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard: Callable[[Mapping[str, Any] | None], None] = lambda _: None
        self._line: _Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._pid: int | None = None

    def listen(self, heard: Callable[[Mapping[str, Any] | None], None]) -> None:
        """Have ``heard`` called with what the runner says of itself, and with None when it went away."""
        self._heard = heard

    @property
    def connected(self) -> bool:
        """Whether somebody is on the other end."""
        return self._line is not None

    def start(self) -> None:
        """Connect, and connect again whenever the line breaks."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._stay())

    async def close(self) -> None:
        """Hang up."""
        line = self._line
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if line is not None:
            line._abort()

    async def call(self, rows: Sequence[Row], end: float, *, gently: bool = False) -> Mapping[str, Any]:
        """Have rows scored.

        Args:
            rows: named values.
            end: monotonic second after which the runner need not begin.
            gently: whether the runner may take its time, because nobody waits.

        Raises:
            LinkDown: when nobody is there, or the line broke.
            RunnerRefused: when the runner says it cannot; :class:`RunnerLate` when it could not do so in time.
        """
        line = self._line
        if line is None:
            msg = f"nobody answers at {self._path.name}"
            raise LinkDown(msg)
        answer = await line.ask(rows, end, gently=gently)
        if "error" in answer and "cpu_s" in answer:
            raise RunnerLate(str(answer["error"]), float(answer["cpu_s"]))
        if "error" in answer:
            raise RunnerRefused(str(answer["error"]))
        return answer

    def kill(self) -> int | None:
        """End the process on the other end, whatever it is doing; returns its id.

        A stopped or looping process does not answer a polite signal. Its supervisor starts another.
        """
        pid = self._pid
        if self._line is None or pid is None or pid == os.getpid():
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            return pid
        return None

    async def _stay(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, line = await loop.create_unix_connection(lambda: _Line(self._heard), str(self._path))
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            self._line, self._pid = line, _peer_pid(line)
            try:
                await line.lost.wait()
            finally:
                self._line = self._pid = None
                self._gone()

    def _gone(self) -> None:
        try:
            self._heard(None)
        except Exception:  # whoever listens may fail; the line is to be mended all the same
            logger.exception("%s: whoever was told that the runner went away failed", self._path.name)


class _Line(_Frames):
    """One connection to a runner."""

    def __init__(self, greeted: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self._greeted = greeted
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._number = 0

    async def ask(self, rows: Sequence[Row], end: float, *, gently: bool) -> Mapping[str, Any]:
        if self.lost.is_set():
            raise LinkDown("the runner went away")
        self._number += 1
        number = self._number
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self.send({"id": number, "end": end, "rows": rows, **({"gently": True} if gently else {})})
            return await future
        finally:
            self._waiting.pop(number, None)

    def frame(self, message: Any) -> None:
        if "hello" in message:
            self._greeted(message["hello"])
            return
        future = self._waiting.pop(message["id"], None)
        if future is not None and not future.done():
            future.set_result(message)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LinkDown("the runner went away"))


def _peer_pid(line: _Line) -> int | None:
    assert line.transport is not None
    peer = line.transport.get_extra_info("socket")
    try:
        packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except (AttributeError, OSError):  # not on every system
        return None
    return int(struct.unpack("3i", packed)[0])
