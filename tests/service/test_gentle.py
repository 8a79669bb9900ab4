"""Work that nobody waits for keeps out of the way of everything else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from service.gentle import Gentle
from service.settings import ROOT


def later() -> float:
    """A minute from now."""
    return time.monotonic() + 60


def test_the_loop_goes_on_and_the_work_is_done_one_after_the_other() -> None:
    seen: list[str] = []
    goes_on = threading.Event()

    def first() -> int:
        seen.append("begun")
        assert goes_on.wait(10)
        seen.append("ended")
        return 1

    def second() -> int:
        seen.append("second")
        return 2

    async def run() -> list[int]:
        gentle = Gentle(3.0)
        both = asyncio.gather(gentle.do(first, later()), gentle.do(second, later()))
        await asyncio.sleep(0.1)
        seen.append("loop")
        goes_on.set()
        found = list(await both)
        with pytest.raises(ZeroDivisionError):
            await gentle.do(lambda: 1 // 0, later())
        gentle.close()
        return found

    assert asyncio.run(run()) == [1, 2]
    assert seen == ["begun", "loop", "ended", "second"]


def test_its_thread_gives_way_and_no_other_does() -> None:
    async def run() -> int:
        gentle = Gentle()
        found = await gentle.do(lambda: os.sched_getscheduler(0), later())
        gentle.close()
        return found

    assert asyncio.run(run()) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


HANGING = """
import asyncio, threading, time
from service.gentle import Gentle
async def main():
    await Gentle(0.01).do(threading.Event().wait, time.monotonic() + 0.1)
asyncio.run(main())
"""


def test_work_that_hangs_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "hangs; the process ends" in done.stderr
