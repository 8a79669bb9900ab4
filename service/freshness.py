"""Watches how old the stored data really are, traffic or none.

The age is that of each view's newest value by its own event time: a feed that runs on time but delivers old data shows
here, where the time since the last delivery (what Feast 0.67 measures) looks healthy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from service import metrics
from service.clock import Clock

logger = logging.getLogger("understudy")


class Dated(Protocol):
    """Anything that knows the event time of its newest values."""

    async def newest(self) -> Mapping[str, datetime | None]:
        """Return it per view; None where a view holds nothing, no entry where it cannot be known."""
        ...


class DataAge:
    """Sets the gauge of every view's data age, again and again.

    While the store cannot be asked, the age of what was last known grows on: silence must not look like freshness.
    """

    def __init__(
        self, lookup: Dated, views: Sequence[str], clock: Clock, every_s: float, patience_s: float = 5.0
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._every_s = every_s
        self._patience_s = patience_s
        self._newest: dict[str, datetime | None] = dict.fromkeys(views)
        self._reachable = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def look(self) -> None:
        """Ask the store once and set the gauges; NaN where nothing is known."""
        self._show()
        try:
            async with asyncio.timeout(self._patience_s):
                self._newest.update(await self._lookup.newest())
            self._reachable = True
        except Exception as error:  # a store may fail in any way; requests notice for themselves
            if self._reachable:
                logger.warning("the age of the stored features cannot be read: %s", error)
            self._reachable = False
        self._show()

    def _show(self) -> None:
        now = self._clock.now()
        metrics.CLOCK.set(now.timestamp())
        for view, at in self._newest.items():
            metrics.DATA_AGE.labels(view).set(math.nan if at is None else (now - at).total_seconds())

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)
