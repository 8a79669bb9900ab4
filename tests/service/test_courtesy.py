"""A process that gives way: nice, and interrupted by whoever wakes up."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from service.courtesy import Busy
from service.settings import ROOT

# Asks the system what it made of it: `sched_getattr` is the call after `sched_setattr` on every architecture.
ASK = """
import ctypes, os, platform
from service.courtesy import _ATTRIBUTES, _SCHED_SETATTR, give_way
{before}
give_way(10)
found = ctypes.create_string_buffer(_ATTRIBUTES.size)
assert ctypes.CDLL(None).syscall(_SCHED_SETATTR[platform.machine()] + 1, 0, found, _ATTRIBUTES.size, 0) == 0
size, policy, flags, nice, priority, runtime, deadline, period = _ATTRIBUTES.unpack(found.raw)
print(policy, nice, runtime, os.getpriority(os.PRIO_PROCESS, 0))
"""


def given_way(before: str = "") -> list[int]:
    """Policy, niceness and slice (nanoseconds) of a process that gave way, and its niceness once more."""
    code = ASK.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(("before", "nice"), [("", 10), ("os.nice(15)", 15)], ids=["as it came", "nicer already"])
def test_it_is_nice_and_asks_for_the_longest_slice(before: str, nice: int) -> None:
    policy, seen, slice_ns, again = given_way(before)

    assert (policy, seen, again) == (os.SCHED_OTHER, nice, nice)
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert slice_ns == (100_000_000 if version >= (6, 12) else 0)


@pytest.mark.parametrize("numbers", ["{}", "{platform.machine(): 1_000_000}"], ids=["unknown machine", "refused"])
def test_where_there_is_no_such_call_it_is_nice_all_the_same(numbers: str) -> None:
    code = f"import os, platform, service.courtesy as c; c._SCHED_SETATTR = {numbers}; c.give_way(10)"
    code += "; print(os.getpriority(os.PRIO_PROCESS, 0))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)

    assert done.stdout == "10\n"


def test_busy_is_the_share_of_the_time_in_which_this_process_computes() -> None:
    busy = Busy()
    time.sleep(0.2)
    idle = busy()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass

    # Others may be computing too.
    assert idle < 0.2 < busy() <= 1.5
