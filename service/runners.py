"""Runners: the processes that hold the models, and the gateway's way of asking them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.batcher import Batcher
from service.errors import NotReady, PackageError
from service.package import Model
from service.roles import Role, load_role
from service.settings import settings


@dataclass(frozen=True)
class Scored:
    """What a runner answered: one score per row (None where the model gave no finite number), and who it is."""

    version: str
    digest: str
    scores: tuple[float | None, ...]


def is_probability(score: Any) -> bool:
    """Whether a model's output can be passed on: a finite number from 0 to 1."""
    return isinstance(score, int | float) and not isinstance(score, bool) and 0.0 <= score <= 1.0


class Runner(Protocol):
    """Anything that scores rows."""

    async def score(self, rows: Sequence[Mapping[str, Any]]) -> Scored:
        """Return one score per row; raises when it cannot."""
        ...


class Host:
    """A runner's inside: the model of one role, loaded and verified once, or the reason why there is none."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.problem = ""
        self._model: Model | None = None
        try:
            self._model = load_role(settings().models_dir, role)
            self._model.score([{}])
        except (NotReady, PackageError) as error:
            # A runner without a model stays up and refuses, so that the gateway can answer by other means.
            self.problem = str(error)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Score rows and return the wire form of :class:`Scored`.

        Raises:
            NotReady: when there is no model to ask.
        """
        if self._model is None:
            raise NotReady(self.problem)
        scores = [s if math.isfinite(s) else None for s in self._model.score(rows)]
        return {"version": self._model.version, "digest": self._model.digest, "scores": scores}


class RemoteRunner:
    """Asks a runner in another process, concurrent rows together.

    Args:
        proxy: what ``bentoml.depends`` gives.
        timeout_s: bound on one call, so that a hung runner cannot hold a place in the batcher for ever.
    """

    def __init__(self, proxy: Any, timeout_s: float, *, max_size: int = 256, inflight: int = 2) -> None:
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._batcher: Batcher[Mapping[str, Any], tuple[str, str, float | None]] = Batcher(
            self._call, max_size=max_size, inflight=inflight
        )
        # bentoml 1.4.39 speaks pickle between services by default; rows and scores need no more than JSON.
        if hasattr(proxy, "to_async"):
            proxy.to_async.media_type = "application/json"

    async def score(self, rows: Sequence[Mapping[str, Any]]) -> Scored:
        """Return one score per row; all rows are scored by one model.

        Raises:
            Exception: whatever went wrong on the way or in the runner; TimeoutError when it took too long.
        """
        if len(rows) == 1:
            version, digest, score = await self._batcher.submit(rows[0])
            return Scored(version, digest, (score,))
        answers = await self._call(rows)
        return Scored(answers[0][0], answers[0][1], tuple(score for _, _, score in answers))

    async def _call(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float | None]]:
        async with asyncio.timeout(self._timeout_s):
            answer = await self._proxy.score(rows=[dict(row) for row in rows])
        version, digest, scores = str(answer["version"]), str(answer["digest"]), answer["scores"]
        if len(scores) != len(rows):
            msg = f"runner returned {len(scores)} scores for {len(rows)} rows"
            raise ValueError(msg)
        return [(version, digest, score) for score in scores]
