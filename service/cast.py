"""Who can answer right now: per role its runner, whether it has a model that fits, and its circuit breaker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from service import metrics
from service.breaker import Breaker
from service.link import Link
from service.roles import Role
from service.runners import Row, Runner, is_probability

logger = logging.getLogger("understudy")

_BEAT_S = 0.5
# While a breaker is open its runner is asked more often, so that it comes back as soon as it can.
_QUICK_BEAT_S = 0.2
_GOOD_BEATS = 3


@dataclass
class Actor:
    """One role as the gateway sees it.

    Attributes:
        runner: who scores for it; None while nobody plays it.
        breaker: whether it is asked.
        familiar: the last row it scored well; a good question to ask it again.
    """

    role: Role
    runner: Runner | None
    breaker: Breaker
    familiar: Row = field(default_factory=dict)


class Echo:
    """The primary as its own understudy: asked again what it has answered, for how much it differs from itself.

    It has a breaker of its own, so that nothing it does counts for or against the primary, and is nobody while the
    primary's breaker is not closed: a primary in trouble is asked for answers only.
    """

    def __init__(self, primary: Actor, breaker: Breaker) -> None:
        self._primary = primary
        self.role: Role = primary.role
        self.breaker = breaker

    @property
    def runner(self) -> Runner | None:
        """The primary's runner, while it plays and is well."""
        return self._primary.runner if self._primary.breaker.state in ("closed", "disabled") else None


@dataclass
class Cast:
    """Everybody who plays, and what to say when nobody can answer; ``shadows`` one for each slot."""

    primary: Actor
    fallback: Actor
    shadows: tuple[Actor, ...]
    base_rate: float

    def actor(self, role: str) -> Actor | None:
        """Who plays a role; None for one there is no runner of."""
        return next((actor for actor in self if actor.role == role), None)

    def __iter__(self) -> Iterator[Actor]:
        return iter((self.primary, self.fallback, *self.shadows))


class Watch:
    """Keeps one actor true to what its runner says, and asks the runner a row now and then.

    The answers to these rows, judged like any other, are the evidence on which an open breaker may close before its
    time; a runner that stays silent for ``hung_s`` is killed, because a stopped or looping process cannot be helped
    otherwise, and its supervisor starts another.

    Args:
        actor: whose ``runner`` is set and emptied.
        runner: what it becomes while a fitting model plays.
        features: names that the definitions have; a model that takes others would be given nulls.
        hung_s: silence after which the runner is killed; 0 never.
        rated: called with the base rate of a model that begins to play.
        valid: whether an answer is one.
    """

    def __init__(
        self,
        actor: Actor,
        link: Link,
        runner: Runner,
        features: Iterable[str],
        *,
        hung_s: float,
        rated: Callable[[float], None] = lambda _: None,
        valid: Callable[[Any], bool] = is_probability,
    ) -> None:
        self._actor = actor
        self._link = link
        self._runner = runner
        self._features = frozenset(features)
        self._hung_s = hung_s
        self._rated = rated
        self._valid = valid
        self._digest: str | None = None
        self._told: tuple[str, str, str] | None = None
        self._good = 0
        self._task: asyncio.Task[None] | None = None
        self.hello: Mapping[str, Any] | None = None

    @property
    def role(self) -> Role:
        """Whose watch it is."""
        return self._actor.role

    @property
    def connected(self) -> bool:
        """Whether the runner's process is there."""
        return self._link.connected

    @property
    def ready(self) -> bool:
        """Whether the runner is there and has a model that fits."""
        return self._link.connected and self._actor.runner is not None and self._digest is not None

    def start(self) -> None:
        """Connect and begin to ask."""
        self._link.start()
        self._task = asyncio.get_running_loop().create_task(self._beats())

    async def close(self) -> None:
        """Stop asking and hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._link.close()

    def heard(self, hello: Mapping[str, Any] | None) -> None:
        """Take in what the runner says of itself; None when it went away, which changes nothing about who plays."""
        self._good = 0
        if hello is None:
            metrics.RUNNER_UP.labels(self._actor.role).set(0)
            return
        self.hello = hello
        digest = hello["digest"]
        metrics.RUNNER_UP.labels(self._actor.role).set(int(digest is not None))
        unknown = sorted(set(hello["features"]) - self._features)
        if unknown and digest != self._digest:
            logger.error(
                "the model that plays %s was trained on features the definitions no longer have (%s); it does not "
                "answer until `make train` seats one that fits", self._actor.role, ", ".join(unknown),
            )  # fmt: skip
        self._actor.runner = self._runner if digest is not None and not unknown else None
        if digest is not None and digest != self._digest:
            self._actor.breaker.reset()
            self._actor.familiar = {}
            self._rated(float(hello["base_rate"]))
        self._tell(hello["version"], digest)
        self._digest = digest

    def _tell(self, version: str | None, digest: str | None) -> None:
        told = (self._actor.role, version, digest[:12]) if version is not None and digest is not None else None
        if self._told is not None and self._told != told:
            metrics.MODEL_INFO.labels(*self._told).set(0)
        if told is not None:
            metrics.MODEL_INFO.labels(*told).set(1)
        self._told = told

    async def _beats(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(_QUICK_BEAT_S if self._actor.breaker.state == "open" else _BEAT_S)

    async def beat(self) -> None:
        """Ask one row."""
        if not self._link.connected:
            return
        patience = self._hung_s or 60.0
        call = self._link.call([self._actor.familiar], time.monotonic() + patience)
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait([task], timeout=patience)
            if not task.done():
                # When it was this process that stood still, the answer is here by now, unread.
                await asyncio.sleep(_QUICK_BEAT_S)
            if not task.done():
                self._good = 0
                self._end()
                return
            good = self._valid(next(iter(task.result()["scores"]), None))
        except Exception:  # gone, refusing, or talking nonsense: each means the same
            good = False
        finally:
            task.cancel()
        self._good = self._good + 1 if good else 0
        if self._good >= _GOOD_BEATS and self._actor.breaker.state == "open":
            self._actor.breaker.hint()
            self._good = 0

    def _end(self) -> None:
        if not self._hung_s:
            return
        pid = self._link.kill()
        if pid is not None:
            metrics.RUNNER_KILLS.labels(self._actor.role).inc()
            logger.error(
                "the %s runner (process %d) did not answer for %g s and was killed", self._actor.role, pid, self._hung_s
            )
