"""The BentoML services: one gateway that users call, one runner process per role. Wiring only."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import asdict
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError

from feature_repo import features as definitions
from service import VERSION, metrics
from service.clock import clock_from
from service.contract import contracts
from service.door import Door, Label, PredictAnswer
from service.errors import BadRequest, NotReady, UnderstudyError
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.prediction_log import SegmentLog
from service.roles import Role, Roles, read_roles, read_signature
from service.routing import Router, Understudies
from service.runners import Host, RemoteRunner
from service.settings import settings
from service.shadow import ShadowPath
from service.wire import Body, inbound, opened, refusal, refuse, reply

logger = logging.getLogger("understudy")

try:
    SETTINGS = settings()
    CONTRACT = contracts(definitions)["primary"]
    CLOCK = clock_from(SETTINGS.clock)
    ROLES = read_roles(SETTINGS.models_dir)
    if not ROLES.seats:
        raise NotReady(f"no models in {SETTINGS.models_dir}; run `make train` first")
except (UnderstudyError, ValidationError) as error:
    # BentoML shows its own exceptions as one line and any other as a traceback.
    raise BentoMLException(str(error)) from None

DOOR = Door(CONTRACT, CLOCK, SETTINGS.body_limit_bytes, SETTINGS.batch_limit)

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


@bentoml.service(name="understudy", **_COMMON, traffic={"timeout": 5}, runner_probe={"enabled": False})
class Gateway:
    """Validates, looks features up, routes to primary or fallback, logs, and lets the shadow rehearse."""

    primary = bentoml.depends(Primary)
    fallback = bentoml.depends(Fallback)
    shadow = bentoml.depends(Shadow)

    def __init__(self) -> None:
        call_s = 2 * SETTINGS.deadline_ms / 1000
        self._predictions = SegmentLog(SETTINGS.log_dir / "predictions", SETTINGS.segment_bytes)
        self._shadows = SegmentLog(SETTINGS.log_dir / "shadow", SETTINGS.segment_bytes)
        self._labels = SegmentLog(SETTINGS.log_dir / "labels", SETTINGS.segment_bytes)
        who = _understudies(ROLES, RemoteRunner(self.primary, call_s), RemoteRunner(self.fallback, call_s))
        shadow = RemoteRunner(self.shadow, SETTINGS.shadow_timeout_ms / 1000) if "shadow" in ROLES.seats else None
        self._shadow_path = ShadowPath(
            shadow,
            self._shadows,
            sample=SETTINGS.shadow_sample,
            queue=SETTINGS.shadow_queue,
            batch=SETTINGS.shadow_batch,
            timeout_s=SETTINGS.shadow_timeout_ms / 1000,
        )
        self._router = Router(
            CONTRACT,
            OnlineLookup(repo_config(SETTINGS, offline=False), CONTRACT, vars(definitions)),
            who,
            self._shadow_path,
            self._predictions,
            CLOCK,
            deadline_s=SETTINGS.deadline_ms / 1000,
            reserve_s=SETTINGS.fallback_reserve_ms / 1000,
            service_version=VERSION,
        )
        _settle()

    @bentoml.api(route="/predict", input_spec=inbound(DOOR.model, DOOR))
    async def predict(self, body: Body, /) -> PredictAnswer:
        """Answer one request."""
        try:
            request = DOOR.one(opened(body))
        except BadRequest as error:
            return refuse("predict", error)  # type: ignore[return-value]  # BentoML passes responses through
        return reply("predict", asdict(await self._router.answer(request)))  # type: ignore[return-value]

    @bentoml.api(route="/predict_batch", input_spec=inbound(list[DOOR.model], DOOR))  # type: ignore[name-defined]
    async def predict_batch(self, body: Body, /) -> list[PredictAnswer]:
        """Answer a list of requests, row by row: an answer, or the row's error and problems."""
        try:
            rows = DOOR.rows(opened(body))
        except BadRequest as error:
            return refuse("predict_batch", error)  # type: ignore[return-value]
        patience = 1 + len(rows) / 50
        return reply("predict_batch", await asyncio.gather(*(self._row(row, patience) for row in rows)))  # type: ignore[return-value]

    async def _row(self, row: bytes, patience: float) -> dict[str, Any]:
        try:
            return asdict(await self._router.answer(DOOR.one(row), patience=patience))
        except BadRequest as error:
            return refusal(error)

    @bentoml.api(route="/labels", input_spec=inbound(list[Label], DOOR))
    async def labels(self, body: Body, /) -> dict[str, int]:
        """Take ground truths: one object or a list; all are kept or none."""
        try:
            labels = DOOR.labels(opened(body))
        except BadRequest as error:
            return refuse("labels", error)  # type: ignore[return-value]
        at = CLOCK.now()
        kept = sum(self._labels.append({**label.model_dump(), "at": at}) for label in labels)
        metrics.LABELS.inc(kept)
        metrics.LOG_DROPS.labels("labels").inc(len(labels) - kept)
        return reply("labels", {"received": len(labels), "kept": kept})  # type: ignore[return-value]

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Let the shadow finish what it has, then close the logs."""
        await self._shadow_path.close(SETTINGS.shadow_drain_s)
        for log in (self._predictions, self._shadows, self._labels):
            log.close()


def _settle() -> None:
    # What is loaded by now lives as long as the process: keep the collector from walking it during requests.
    gc.collect()
    gc.freeze()


def _understudies(roles: Roles, primary: RemoteRunner, fallback: RemoteRunner) -> Understudies:
    signatures = {role: read_signature(SETTINGS.models_dir, role) for role in roles.seats}
    base_rates = [s.base_rate for s in signatures.values() if s is not None]
    return Understudies(
        primary=primary if "primary" in roles.seats else None,
        fallback=fallback if "fallback" in roles.seats else None,
        fallback_signature=signatures.get("fallback"),
        base_rate=base_rates[0] if base_rates else 0.5,
    )
