"""How a process gives way to others on the processors of its machine."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
import time
from contextlib import suppress

logger = logging.getLogger("understudy")

# Of a shadow: it yields the processor to those whose answers somebody waits for.
SHADOW_NICE = 10
# Python has no call for it (3.11); the number differs by architecture.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
# struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
# The longest slice there is, in nanoseconds.
_SLICE_NS = 100_000_000


def give_way(nice: int) -> None:
    """Let this thread, and those it starts, yield the processor to whoever wakes up.

    Niceness says how much of a busy processor a process gets, not when: Linux lets whoever runs finish its slice, nice
    or not, and whoever waits for an answer waits for that. A process that asks for longer slices is interrupted by
    those that did not (Linux 6.12, ``sched_setattr`` with a runtime); earlier systems take no notice.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return
    attributes = _ATTRIBUTES.pack(
        _ATTRIBUTES.size, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _SLICE_NS, 0, 0
    )
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, 0, attributes, 0):
            logger.info("a longer slice of the processor was refused: %s", os.strerror(ctypes.get_errno()))


class Busy:
    """How busy this process keeps a processor."""

    def __init__(self) -> None:
        self._since = time.monotonic(), time.process_time()

    def __call__(self) -> float:
        """Return the share of the time since the last call in which it computed; more than 1 with several threads."""
        now, used = time.monotonic(), time.process_time()
        (before, used_before), self._since = self._since, (now, used)
        return (used - used_before) / max(now - before, 1e-3)
