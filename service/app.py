"""The BentoML services: one gateway that users call, one runner process per role. Wiring only.

Every process of the bundle imports this module, so nothing here imports Feast; see ``wiring.py``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError
from starlette.responses import Response

from service import metrics
from service.answers import PredictAnswer
from service.errors import BadRequest, NotReady, UnderstudyError
from service.roles import Role, read_roles
from service.runners import Host
from service.settings import settings
from service.wire import Body, opened, refusal, refuse, reply, spoken

logger = logging.getLogger("understudy")

try:
    SETTINGS = settings()
    if not read_roles(SETTINGS.models_dir).seats:
        raise NotReady(f"no models in {SETTINGS.models_dir}; run `make train` first")
    if "bentoml" in Path(sys.argv[0]).parts[-2:] and sys.argv[1:2] in (["build"], ["deploy"]):
        # A build has no hook of its own (bentoml 1.4.39); it imports this module.
        from feature_repo import features
        from service.changes import refuse as refuse_build
        from service.definitions import contracts

        refuse_build(SETTINGS, contracts(features))
except (UnderstudyError, ValidationError) as error:
    # BentoML shows its own exceptions as one line and any other as a traceback.
    raise BentoMLException(str(error)) from None

# A request's context lives until its timer ends, so timers are short (bentoml 1.4.39 never cancels them).
# Sessions between services are never renewed: renewing fails the calls under way (bentoml 1.4.39).
_COMMON: dict[str, Any] = {"metrics": {"enabled": True}, "logging": {"access": {"enabled": False}}}
_RUNNER: dict[str, Any] = {
    **_COMMON,
    "workers": 1,
    "traffic": {"timeout": 2},
    "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
}


class _Runner:
    role: Role

    def __init__(self) -> None:
        self._host = Host(self.role)
        if self._host.problem:
            logger.warning("%s runner has no model: %s", self.role, self._host.problem)
        _settle()

    @bentoml.api
    async def score(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Score rows of named values."""
        return self._host.score(rows)


@bentoml.service(name="primary", **_RUNNER)
class Primary(_Runner):
    """Hosts the model whose answers count."""

    role: Role = "primary"


@bentoml.service(name="fallback", **_RUNNER)
class Fallback(_Runner):
    """Hosts the model that answers when the primary cannot; needs no feature store."""

    role: Role = "fallback"


@bentoml.service(name="shadow", **_RUNNER)
class Shadow(_Runner):
    """Hosts the model that rehearses on live vectors; nobody waits for it."""

    role: Role = "shadow"


# A dead shadow must not take the service out of rotation, so readiness does not ask the runners.
@bentoml.service(name="understudy", **_COMMON, traffic={"timeout": 5}, runner_probe={"enabled": False})
class Gateway:
    """Validates, looks features up, routes to primary or fallback, logs, and lets the shadow rehearse."""

    primary = bentoml.depends(Primary)
    fallback = bentoml.depends(Fallback)
    shadow = bentoml.depends(Shadow)

    def __init__(self) -> None:
        from service.wiring import assemble

        self._gear = assemble(SETTINGS, self.primary, self.fallback, self.shadow)
        _settle()

    @bentoml.api(route="/predict", **spoken("predict", PredictAnswer, SETTINGS.body_limit_bytes))
    async def predict(self, body: Body, /) -> Response:
        """Answer one request."""
        try:
            request = self._gear.door.one(opened(body))
        except BadRequest as error:
            return refuse("predict", error)
        return reply("predict", asdict(await self._gear.router.answer(request)))

    @bentoml.api(route="/predict_batch", **spoken("predict_batch", list[PredictAnswer], SETTINGS.body_limit_bytes))
    async def predict_batch(self, body: Body, /) -> Response:
        """Answer a list of requests, row by row: an answer, or the row's error and problems."""
        try:
            rows = self._gear.door.rows(opened(body))
        except BadRequest as error:
            return refuse("predict_batch", error)
        patience = 1 + len(rows) / 50
        answers = await asyncio.gather(*(self._row(row, patience) for row in rows))
        return reply("predict_batch", answers)

    async def _row(self, row: bytes, patience: float) -> dict[str, Any]:
        try:
            return asdict(await self._gear.router.answer(self._gear.door.one(row), patience=patience))
        except BadRequest as error:
            return refusal(error)

    @bentoml.api(route="/labels", **spoken("labels", dict[str, int], SETTINGS.body_limit_bytes))
    async def labels(self, body: Body, /) -> Response:
        """Take ground truths: one object or a list; a list with one wrong entry is refused whole."""
        try:
            labels = self._gear.door.labels(opened(body))
        except BadRequest as error:
            return refuse("labels", error)
        at = self._gear.clock.now()
        kept = sum(self._gear.labels.append({**label.model_dump(), "at": at}) for label in labels)
        metrics.LABELS.inc(kept)
        metrics.LOG_DROPS.labels("labels").inc(len(labels) - kept)
        return reply("labels", {"received": len(labels), "kept": kept})

    @bentoml.on_startup
    async def watch(self) -> None:
        """Begin to watch the age of the stored features."""
        self._gear.data_age.start()

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Let the shadow finish what it has, then close the logs."""
        await self._gear.data_age.close()
        await self._gear.shadow.close(SETTINGS.shadow_drain_s)
        for log in (self._gear.predictions, self._gear.shadows, self._gear.labels):
            log.close()


def _settle() -> None:
    # What is loaded by now lives as long as the process: keep the collector from walking it during requests.
    gc.collect()
    gc.freeze()
