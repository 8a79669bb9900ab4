"""A TCP proxy that can pass, stall, cut or refuse connections, or return garbage; in a process of its own.

It reads the name of the next mode from stdin, a line each, prints it once it is in force, and ends with stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, get_args

from service.settings import ROOT

Mode = Literal["pass", "stall", "cut", "refuse", "garbage"]
MODES: tuple[Mode, ...] = get_args(Mode)
_CHUNK = 65536


class Proxy:
    """Stands between clients and one server, both on loopback.

    ``stall`` keeps connections open and holds every byte back until another mode comes; ``cut`` resets each
    connection as soon as it is used; ``refuse`` does not listen; ``garbage`` exchanges the server's bytes.
    """

    def __init__(self, upstream: int, seed: int = 0) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)
        self._mode: Mode = "pass"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self, port: int = 0) -> None:
        """Listen on a port of loopback; 0 for a free one, found in ``port``."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port or self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def switch(self, mode: Mode) -> None:
        """Change the mode, for connections that are open too."""
        self._mode = mode
        if mode == "stall":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode in ("cut", "refuse"):
            self._abort()
        if mode == "refuse":
            self._close()
        elif self._server is None:
            await self.start()

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        self._close()
        self._abort()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            self._open.discard(writer)
            writer.transport.abort()
            return
        self._open.add(far_writer)
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer, answers=False)),
            asyncio.ensure_future(self._pump(far_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for one in (writer, far_writer):
                self._open.discard(one)
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(_CHUNK):
            await self._flowing.wait()
            if self._mode == "cut":
                return
            writer.write(self._garbage(len(data)) if answers and self._mode == "garbage" else data)
            await writer.drain()

    def _garbage(self, length: int) -> bytes:
        # Half of it is well-formed to Redis clients, and as wrong.
        if self._random.random() < 0.5:
            return b":7\r\n" * self._random.randint(1, 8)
        return self._random.randbytes(length)


class ProxyProcess:
    """A proxy in a process of its own, so that its work delays nobody here.

    Attributes:
        port: on which it listens.
    """

    def __init__(self, upstream: int) -> None:
        command = [sys.executable, "-m", "benchmarks.proxy", str(upstream)]
        pipe = subprocess.PIPE
        # A Ctrl-C is for the harness, which closes this afterwards.
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1, start_new_session=True
        )
        self.port = int(self._read())

    def switch(self, mode: Mode) -> None:
        """Change the mode; returns when it is in force."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode}\n")
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy ended")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


async def run(upstream: int) -> None:
    """Serve until stdin ends."""
    proxy = Proxy(upstream)
    await proxy.start()
    print(proxy.port, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        mode = next(m for m in MODES if m == line.strip())
        await proxy.switch(mode)
        print(mode, flush=True)
    await proxy.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. First line of stdout: the port; then each mode that came into force."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("upstream", type=int, help="port of the server on loopback")
    args = parser.parse_args(argv)
    asyncio.run(run(args.upstream))
    return 0


if __name__ == "__main__":
    sys.exit(main())
