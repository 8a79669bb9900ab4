"""A circuit breaker on error rate and slow-call rate over time windows. One per runner and process.

Closed, every call is admitted and counted. Too many failures or slow calls among enough calls open it: nothing is
admitted until ``open_s`` have passed, or until somebody has evidence that the runner answers again (:meth:`hint`).
Half-open, a few calls at a time are admitted as probes; enough good ones close it with an empty window, one bad one
opens it again.

Two windows share the counts. The long one finds a runner that fails now and then; after an hour of good traffic it
would take long to notice one that died, which the short one does in seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "half_open", "open"]
Mode = Literal["auto", "forced_open", "disabled"]
MODES: tuple[Mode, ...] = ("auto", "forced_open", "disabled")
_SLOTS = 60


@dataclass(frozen=True)
class Rules:
    """When a breaker opens and how it closes.

    Attributes:
        error_rate: share of failed calls in the long window above which it opens, 0 to 1.
        slow_rate: share of slow calls (failed ones included when they took long) above which it opens.
        slow_s: duration from which a call is slow, in seconds.
        window_s: length of the long window, in seconds.
        min_calls: fewest calls in a window that say anything.
        sudden_rate: share of failed or slow calls in the short window above which it opens.
        sudden_s: length of the short window, in seconds.
        open_s: time until it probes by itself, in seconds.
        probes: good probes that close it, and most of them under way at once.
    """

    error_rate: float = 0.1
    slow_rate: float = 0.5
    slow_s: float = 0.025
    window_s: float = 300.0
    min_calls: int = 10
    sudden_rate: float = 0.5
    sudden_s: float = 5.0
    open_s: float = 60.0
    probes: int = 3


class Ticket:
    """Permission for one call; must be settled exactly once, later settlements are ignored."""

    __slots__ = ("_breaker", "_generation", "_probe", "_settled")

    def __init__(self, breaker: Breaker, generation: int, *, probe: bool) -> None:
        self._breaker = breaker
        self._generation = generation
        self._probe = probe
        self._settled = False

    def settle(self, seconds: float, *, failed: bool) -> None:
        """Tell how the call went."""
        if not self._settled:
            self._settled = True
            self._breaker._settle(self._generation, self._probe, seconds, failed=failed)

    def withdraw(self) -> None:
        """Give the permission back: the call was cancelled for reasons that are not the runner's."""
        if not self._settled:
            self._settled = True
            self._breaker._withdraw(self._generation, self._probe)


class Window:
    """Counts of calls, failures and slow calls over the last seconds, in slots; what is old goes when it is read."""

    def __init__(self, seconds: float) -> None:
        self._slot_s = seconds / _SLOTS
        self._slots: deque[list[int]] = deque()
        self.calls = self.failed = self.slow = self.bad = 0

    def add(self, now: float, *, failed: bool, slow: bool) -> None:
        """Count one call."""
        self.expire(now)
        slot = int(now / self._slot_s)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0, 0, 0, 0])
        for i, one in enumerate((True, failed, slow, failed or slow), 1):
            self._slots[-1][i] += one
        self.calls += 1
        self.failed += failed
        self.slow += slow
        self.bad += failed or slow

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        oldest = int(now / self._slot_s) - _SLOTS
        while self._slots and self._slots[0][0] <= oldest:
            _, calls, failed, slow, bad = self._slots.popleft()
            self.calls -= calls
            self.failed -= failed
            self.slow -= slow
            self.bad -= bad


class Breaker:
    """Decides call by call whether a runner is asked.

    Args:
        rules: when it opens and closes.
        now: monotonic seconds.
        changed: called with every new state, however it came about; must not raise.
    """

    def __init__(
        self,
        rules: Rules,
        now: Callable[[], float] = time.monotonic,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._now = now
        self._changed = changed
        self._mode: Mode = "auto"
        self._state: State = "closed"
        # Raised with every change of state: a call that was admitted before says nothing about the state after.
        self._generation = 0
        self._opened = 0.0
        self._under_way = self._good = 0
        self._long, self._short = Window(rules.window_s), Window(rules.sudden_s)
        changed(self.state)

    @property
    def state(self) -> str:
        """``closed``, ``half_open`` or ``open``; with an operator's hand on it ``forced_open`` or ``disabled``."""
        return self._state if self._mode == "auto" else self._mode

    @property
    def counts(self) -> tuple[int, int, int]:
        """Calls, failures and slow calls in the long window."""
        self._long.expire(self._now())
        return self._long.calls, self._long.failed, self._long.slow

    def admit(self, *, last_resort: bool = False) -> Ticket | None:
        """Return a ticket for one call, or None when the runner is not to be asked.

        Args:
            last_resort: nobody else can answer; only an operator's hand refuses such a call, and it is not counted.
        """
        if self._mode == "disabled" or (last_resort and self._mode == "auto" and self._state != "closed"):
            # Generation -1 is never current.
            return Ticket(self, -1, probe=False)
        if self._mode == "forced_open":
            return None
        if self._state == "open" and self._now() - self._opened >= self._rules.open_s:
            self._become("half_open")
        if self._state == "open":
            return None
        if self._state == "closed":
            return Ticket(self, self._generation, probe=False)
        if self._under_way + self._good >= self._rules.probes:
            return None
        self._under_way += 1
        return Ticket(self, self._generation, probe=True)

    def hint(self) -> None:
        """Take note of evidence that the runner answers again: probe now rather than later."""
        if self._state == "open":
            self._become("half_open")

    def reset(self) -> None:
        """Start anew, closed and with empty windows: another model plays the role."""
        self._become("closed")

    def operate(self, mode: Mode) -> None:
        """Force it open, switch it off, or give it back to itself (closed, with empty windows)."""
        if mode != self._mode:
            self._mode = mode
            self._become("closed")

    def _settle(self, generation: int, probe: bool, seconds: float, *, failed: bool) -> None:
        if generation != self._generation or self._mode != "auto":
            return
        slow = seconds >= self._rules.slow_s
        if probe:
            self._under_way -= 1
            if failed or slow:
                self._become("open")
                return
            self._good += 1
            if self._good >= self._rules.probes:
                self._become("closed")
            return
        now = self._now()
        self._long.add(now, failed=failed, slow=slow)
        self._short.add(now, failed=failed, slow=slow)
        if (failed or slow) and self._too_bad():
            self._become("open")

    def _withdraw(self, generation: int, probe: bool) -> None:
        if probe and generation == self._generation:
            self._under_way -= 1

    def _too_bad(self) -> bool:
        rules, long, short = self._rules, self._long, self._short
        if long.calls >= rules.min_calls and (
            long.failed > rules.error_rate * long.calls or long.slow > rules.slow_rate * long.calls
        ):
            return True
        return short.calls >= rules.min_calls and short.bad > rules.sudden_rate * short.calls

    def _become(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self._under_way = self._good = 0
        if state == "open":
            self._opened = self._now()
        if state == "closed":
            self._long, self._short = Window(self._rules.window_s), Window(self._rules.sudden_s)
        self._changed(self.state)
