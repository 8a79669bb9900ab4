"""Files that a running process keeps to: looked at twice a second, whatever becomes of them."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

logger = logging.getLogger("understudy")

_LOOK_S = 0.5


class Follower(ABC):
    """Looks at what it follows, again and again, from :meth:`start` to :meth:`close`."""

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    def look(self) -> None:
        """Take in what has changed; must not wait."""

    def start(self) -> None:
        """Look, and begin to follow."""
        self.look()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                self.look()
            except Exception:  # whatever it was, the next look may find it mended
                logger.exception("%s could not look", type(self).__name__)
