"""The runner's end of the private line; ``link.py`` has the gateway's end, and says what is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from service.gentle import Gentle
from service.link import Frames, Row


class Scorer(Protocol):
    """A runner's inside."""

    def score(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return ``version``, ``digest``, ``scores`` and ``cpu_s``; raises when it cannot."""
        ...

    def hello(self) -> dict[str, Any]:
        """Say who answers here."""
        ...


class LinkServer:
    """The runner's end: takes calls in the event loop, one at a time, and gentle ones beside it.

    Args:
        path: of its socket.
        scorer: scores; from two threads at once.
        hung_s: as :class:`service.gentle.Gentle` takes it.
    """

    def __init__(self, path: Path, scorer: Scorer, hung_s: float = 0.0) -> None:
        self._path = path
        self._scorer = scorer
        self._gentle = Gentle(hung_s)
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()

    async def start(self) -> None:
        """Listen, in the place of whoever listened here before."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Peer(self._scorer, self._gentle, self._peers), str(self._path)
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
            peer.abort()
        self._gentle.close()


class _Peer(Frames):
    """One gateway, as its runner sees it."""

    def __init__(self, scorer: Scorer, gentle: Gentle, peers: set[_Peer]) -> None:
        super().__init__()
        self._scorer = scorer
        self._gentle = gentle
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peers.add(self)
        self.send({"hello": self._scorer.hello()})

    def connection_lost(self, _: Exception | None) -> None:
        self._peers.discard(self)

    def frame(self, message: Any) -> None:
        number, end, rows = message["id"], message["end"], message["rows"]
        if message.get("gently"):
            task = asyncio.get_running_loop().create_task(self._beside(number, rows, end))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.send({"id": number, **self._score(rows, end)})

    async def _beside(self, number: int, rows: Sequence[Row], end: float) -> None:
        self.send({"id": number, **await self._gentle.do(lambda: self._score(rows, end), end)})

    def _score(self, rows: Sequence[Row], end: float) -> dict[str, Any]:
        try:
            # The clock is the machine's: a call that waited while this process was stopped or busy is not worth doing.
            if time.monotonic() >= end:
                return {"error": "too late"}
            return self._scorer.score(rows)
        except Exception as error:  # a model may fail in any way; the gateway is told, and knows what to do
            return {"error": f"{type(error).__name__}: {error}"}
