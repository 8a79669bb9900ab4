"""Work that nobody waits for, on a thread that gets a processor only when nobody else wants one."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

logger = logging.getLogger("understudy")

Result = TypeVar("Result")

# Such a thread gets a processor rarely while all are busy: it counts as hung much later than one that answers callers.
_PATIENCE = 20


class Gentle:
    """Does one thing at a time, without stalling the event loop.

    Niceness is not enough: a nice process keeps the processor for its whole slice when an answer's next step is ready
    to run, which made the slowest twentieth of the answers half as slow again (Linux 6.18). ``SCHED_IDLE`` gives it up
    at once; where there is none, the thread is one like others.

    Args:
        hung_s: a twentieth of the time after its end from which work counts as hung; the process ends then, because a
            thread cannot be. 0: never.
    """

    def __init__(self, hung_s: float = 0.0) -> None:
        self._hung_s = hung_s * _PATIENCE
        self._thread = ThreadPoolExecutor(1, "gentle", initializer=_yield_processor)

    async def do(self, work: Callable[[], Result], end: float) -> Result:
        """Return what ``work`` does; raises what it raises.

        Args:
            end: monotonic second at which it should be done; it is not cut short.
        """
        done = asyncio.get_running_loop().run_in_executor(self._thread, work)
        if self._hung_s:
            await asyncio.wait([done], timeout=max(0.0, end - time.monotonic()) + self._hung_s)
            if not done.done():
                logger.error("work that should have been done %g s ago hangs; the process ends", self._hung_s)
                sys.stderr.flush()
                os._exit(1)
        return await done

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _yield_processor() -> None:
    # A thread's own: the others of its process stay as they are.
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
