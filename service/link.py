"""The private line between gateway and runner: JSON frames over a Unix socket in a folder only their user may enter.

BentoML starts and supervises the runners; calls do not go through its HTTP client, because that costs a millisecond
a call, fails calls when it renews its sessions, speaks pickle, and cannot be asked who is on the other end
(bentoml 1.4.39). A frame is a length (4 bytes, big-endian) and a JSON object:

=================  =============================================================================================
runner, unasked    ``{"hello": {"role", "version", "digest", "problem"}}`` on connecting and when the model changes
gateway            ``{"id", "end", "rows", "gently"}``; ``end`` is the monotonic second after which nobody wants the
                   answer; ``gently``, which may be left out, when nobody waits for it
runner             ``{"id", "version", "digest", "scores", "cpu_s"}`` or ``{"id", "error"}``
=================  =============================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson

logger = logging.getLogger("understudy")

_LENGTH = struct.Struct(">I")
_LARGEST = 64 * 2**20
_RETRY_S = 0.1

Row = Mapping[str, Any]


class LinkDown(Exception):
    """The runner cannot be reached, or went away during the call."""


class RunnerRefused(Exception):
    """The runner answered that it cannot score; the text says why."""


class Frames(asyncio.Protocol):
    """Cuts a stream into frames; :meth:`frame` takes each."""

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
                self.abort()
                return
            if len(self._buffer) < _LENGTH.size + size:
                return
            frame = bytes(self._buffer[_LENGTH.size : _LENGTH.size + size])
            del self._buffer[: _LENGTH.size + size]
            try:
                self.frame(orjson.loads(frame))
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                # Whoever sends this cannot be talked to; the other side connects anew.
                self.abort()
                return

    def abort(self) -> None:
        """Hang up."""
        if self.transport is not None:
            self.transport.abort()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one frame, unless the line is down."""
        if self.transport is not None and not self.transport.is_closing():
            data = orjson.dumps(message, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
            self.transport.write(_LENGTH.pack(len(data)) + data)

    def frame(self, message: Any) -> None:
        """Take one frame; what it raises of a frame's shape ends the line."""
        raise NotImplementedError


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
            line.abort()

    async def call(self, rows: Sequence[Row], end: float, *, gently: bool = False) -> Mapping[str, Any]:
        """Have rows scored.

        Args:
            rows: named values.
            end: monotonic second after which the runner need not begin.
            gently: when nobody waits for the answer.

        Raises:
            LinkDown: when nobody is there, or the line broke.
            RunnerRefused: when the runner says it cannot.
        """
        line = self._line
        if line is None:
            msg = f"nobody answers at {self._path.name}"
            raise LinkDown(msg)
        answer = await line.ask({"end": end, "rows": rows, **({"gently": True} if gently else {})})
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


class _Line(Frames):
    """One connection to a runner."""

    def __init__(self, greeted: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self._greeted = greeted
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._number = 0

    async def ask(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.lost.is_set():
            raise LinkDown("the runner went away")
        self._number += 1
        number = self._number
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self.send({"id": number, **call})
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
