"""The private line between gateway and runner, over real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.link import Link, LinkDown, LinkServer, RunnerLate, RunnerRefused, _Frames
from service.runners import RemoteRunner, Scored
from service.settings import ROOT


class Echo:
    """Scores a row by its ``x``; fails on ``None``."""

    def __init__(self) -> None:
        self.version = "1"
        self.rows: list[Mapping[str, Any]] = []

    def score(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self.rows += rows
        return {"version": self.version, "digest": "d", "scores": [float(row["x"]) for row in rows], "cpu_s": 0.0}

    def hello(self) -> dict[str, Any]:
        return {"role": "primary", "seated": True, "version": self.version, "digest": "d"}


def later() -> float:
    """A minute from now."""
    return time.monotonic() + 60


def over_a_line(path: Path, work: Callable[[Link, LinkServer, Echo, list[Any]], Awaitable[None]]) -> list[Any]:
    """Run ``work`` on a connected line; returns what the link heard."""
    heard: list[Any] = []

    async def run() -> None:
        echo = Echo()
        server = LinkServer(path, echo)
        await server.start()
        link = Link(path)
        link.listen(heard.append)
        link.start()
        await until(lambda: bool(heard))
        await work(link, server, echo, heard)
        await link.close()
        await server.close(1)

    asyncio.run(run())
    return heard


async def until(done: Callable[[], bool]) -> None:
    """Wait until ``done``, at most ten seconds."""
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.01)


def test_rows_are_scored_and_answers_find_their_callers(tmp_path: Path) -> None:
    async def work(link: Link, *_: Any) -> None:
        answers = await asyncio.gather(*(link.call([{"x": i}], later()) for i in range(50)))

        assert [a["scores"] for a in answers] == [[float(i)] for i in range(50)]

    heard = over_a_line(tmp_path / "s", work)
    assert heard[0]["version"] == "1"


def test_a_large_call_arrives_whole(tmp_path: Path) -> None:
    async def work(link: Link, *_: Any) -> None:
        answer = await link.call([{"x": i, "padding": "z" * 1000} for i in range(3000)], later())

        assert answer["scores"] == [float(i) for i in range(3000)]

    over_a_line(tmp_path / "s", work)


def test_what_the_runner_cannot_score_is_an_error_with_its_reason(tmp_path: Path) -> None:
    async def work(link: Link, *_: Any) -> None:
        with pytest.raises(RunnerRefused, match="KeyError: 'x'"):
            await link.call([{}], later())
        assert (await link.call([{"x": 1}], later()))["scores"] == [1.0]

    over_a_line(tmp_path / "s", work)


def test_what_nobody_waits_for_any_more_is_not_scored(tmp_path: Path) -> None:
    async def work(link: Link, _: Any, echo: Echo, __: Any) -> None:
        with pytest.raises(RunnerRefused, match="too late"):
            await link.call([{"x": 1}], time.monotonic() - 0.001)
        assert echo.rows == []

    over_a_line(tmp_path / "s", work)


def test_another_model_is_announced(tmp_path: Path) -> None:
    async def work(_: Any, server: LinkServer, echo: Echo, heard: list[Any]) -> None:
        echo.version = "2"
        server.announce()
        await until(lambda: len(heard) == 2)

    assert [h and h["version"] for h in over_a_line(tmp_path / "s", work)] == ["1", "2", None]


def test_calls_fail_at_once_while_nobody_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        link = Link(tmp_path / "nobody")
        link.start()
        begun = time.perf_counter()
        with pytest.raises(LinkDown):
            await link.call([{"x": 1}], later())
        assert time.perf_counter() - begun < 1
        await link.close()

    asyncio.run(run())


def test_calls_under_way_fail_when_the_runner_goes_and_the_next_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def run() -> None:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.close()

        first = await asyncio.start_unix_server(hang, str(path))
        link = Link(path)
        link.start()
        await until(lambda: link.connected)
        with pytest.raises(LinkDown):
            await link.call([{"x": 1}], later())
        first.close()
        second = LinkServer(path, Echo())
        await second.start()
        await until(lambda: link.connected)

        assert (await link.call([{"x": 3}], later()))["scores"] == [3.0]
        await link.close()
        await second.close(1)

    asyncio.run(run())


def test_a_listener_that_fails_does_not_keep_the_line_down(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def fail(hello: Any) -> None:
        if hello is None:
            msg = "a fault nobody foresaw"
            raise RuntimeError(msg)

    async def run() -> None:
        link = Link(path)
        link.listen(fail)
        link.start()
        for value in (1.0, 2.0):
            server = LinkServer(path, Echo())
            await server.start()
            await until(lambda: link.connected)
            assert (await link.call([{"x": value}], later()))["scores"] == [value]
            await server.close(0)
            await until(lambda: not link.connected)
        await link.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", struct.pack(">I", 3) + b"{]}", struct.pack(">I", 2) + b"17", struct.pack(">I", 2) + b"{}"],
    ids=["too long", "not json", "not an object", "nothing in it"],
)
def test_garbage_ends_the_line_and_not_the_runner(tmp_path: Path, garbage: bytes) -> None:
    async def work(link: Link, *_: Any) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(garbage)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()

        assert (await link.call([{"x": 2}], later()))["scores"] == [2.0]

    over_a_line(tmp_path / "s", work)


class Kept(_Frames):
    """Keeps what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def frame(self, message: Any) -> None:
        self.messages.append(message)


@given(messages=st.lists(st.dictionaries(st.text(max_size=5), st.integers(0, 2**40)), max_size=10), data=st.data())
@settings(max_examples=200, deadline=None)
def test_frames_survive_being_cut_anywhere(messages: list[dict[str, int]], data: st.DataObject) -> None:
    import orjson

    stream = b"".join(struct.pack(">I", len(p)) + p for p in map(orjson.dumps, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    kept = Kept()

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        kept.data_received(stream[start:end])

    assert kept.messages == messages


RUNNER = """
import asyncio, sys
from pathlib import Path
from tests.service.test_link import Echo
from service.link import LinkServer
async def main():
    await LinkServer(Path(sys.argv[1]), Echo()).start()
    print("up", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_stopped_runner_is_killed_by_the_id_of_whoever_holds_the_line(tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = subprocess.Popen([sys.executable, "-c", RUNNER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"

    async def run() -> int | None:
        link = Link(path)
        link.start()
        await until(lambda: link.connected)
        os.kill(process.pid, signal.SIGSTOP)
        killed = link.kill()
        await until(lambda: not link.connected)
        await link.close()
        return killed

    try:
        assert asyncio.run(run()) == process.pid
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.stdout.close()


def test_nobody_is_killed_while_the_line_is_down(tmp_path: Path) -> None:
    assert Link(tmp_path / "s").kill() is None


def test_the_runner_lingers_until_its_gateways_have_gone(tmp_path: Path) -> None:
    async def run() -> float:
        server = LinkServer(tmp_path / "s", Echo())
        await server.start()
        link = Link(tmp_path / "s")
        link.start()
        await until(lambda: link.connected)
        begun = time.perf_counter()
        closing = asyncio.create_task(server.close(30))
        await asyncio.sleep(0.2)
        assert (await link.call([{"x": 1}], later()))["scores"] == [1.0]
        await link.close()
        await closing
        return time.perf_counter() - begun

    assert asyncio.run(run()) < 10


def test_a_runner_answers_others_while_it_scores_many_gently(tmp_path: Path) -> None:
    order: list[str] = []

    async def run() -> None:
        server = LinkServer(tmp_path / "s", Echo(), cpu=0.1)
        await server.start()
        link = Link(tmp_path / "s")
        link.start()
        await until(lambda: link.connected)

        async def asked(name: str, count: int, *, gently: bool = False) -> list[float]:
            answer = await link.call([{"x": i, "cpu": 0} for i in range(count)], later(), gently=gently)
            order.append(name)
            return list(answer["scores"])

        many, one = await asyncio.gather(asked("many", 300, gently=True), asked("one", 1))
        assert (len(many), one) == (300, [0.0])
        with pytest.raises(RunnerRefused, match="KeyError: 'x'"):
            await link.call([{}] * 100, later(), gently=True)
        # For what somebody waits for there are no rests.
        await asyncio.gather(asked("urgent", 300), asked("next", 1))
        await link.close()
        await server.close(1)

    asyncio.run(run())

    assert order == ["one", "many", "urgent", "next"]


class Slow(Echo):
    """Takes 100 ms, and says so."""

    def score(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        time.sleep(0.1)
        return {**super().score(rows), "cpu_s": 0.1}


@asynccontextmanager
async def slow(path: Path) -> AsyncIterator[Link]:
    """A line to a slow runner."""
    server = LinkServer(path, Slow(), cpu=0.1)
    await server.start()
    link = Link(path)
    link.start()
    await until(lambda: link.connected)
    try:
        yield link
    finally:
        await link.close()
        await server.close(1)


def test_a_runner_that_gives_up_says_so_in_time_and_what_it_has_spent(tmp_path: Path) -> None:
    async def run() -> RunnerLate:
        async with slow(tmp_path / "s") as link:
            with pytest.raises(RunnerLate, match="of 50 rows were scored in time") as late:
                await RemoteRunner(link).score([{"x": 1}] * 50, time.monotonic() + 0.55, gently=True)
        return late.value

    assert 0.2 <= asyncio.run(run()).cpu_s <= 0.5


def test_rows_that_went_together_share_the_time_they_took(tmp_path: Path) -> None:
    async def run() -> list[Scored]:
        async with slow(tmp_path / "s") as link:
            runner = RemoteRunner(link, inflight=1)
            found = await asyncio.gather(*(runner.score([{"x": i}], later()) for i in range(3)))
            return [*found, await runner.score([{"x": 3}], later(), gently=True)]

    # All three come before the first call leaves.
    assert [round(scored.cpu_s, 4) for scored in asyncio.run(run())] == [0.0333, 0.0333, 0.0333, 0.1]
