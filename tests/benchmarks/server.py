"""A small HTTP server whose every answer a test decides; what it saw is kept."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reply:
    """One answer; ``status`` 0 closes the connection instead."""

    status: int = 200
    after_s: float = 0.0
    timing: str = ""


@dataclass
class Seen:
    """Bodies in the order they came, and the most requests that were under way at once."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    under_way: int = 0
    most: int = 0


@contextlib.contextmanager
def answering(reply: Callable[[int, bytes], Reply]) -> Iterator[Seen]:
    """Serve on loopback until the block ends; ``reply`` is given the request's number and body."""
    seen, ready, over = Seen(), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await answer(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        found = reply(len(seen.bodies), body)
        seen.bodies.append(body)
        seen.under_way += 1
        seen.most = max(seen.most, seen.under_way)
        await asyncio.sleep(found.after_s)
        seen.under_way -= 1
        if not found.status:
            return False
        timing = f"Server-Timing: {found.timing}\r\n" if found.timing else ""
        writer.write(f"HTTP/1.1 {found.status} x\r\n{timing}Content-Length: 2\r\n\r\n{{}}".encode())
        return True

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loops.append(asyncio.get_running_loop())
        ready.set()
        await over.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield seen
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()
