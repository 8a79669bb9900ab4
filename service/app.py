"""The BentoML services: one gateway that users call, one runner process per role. Wiring only.

Every process of the bundle imports this module, so nothing here imports Feast; see ``wiring.py``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError
from starlette.responses import Response

from service import lean
from service.admin import admin_app
from service.answers import PredictAnswer, RowRefused
from service.courtesy import SHADOW_NICE, give_way
from service.errors import NotReady, UnderstudyError
from service.guard import Guard, tokens
from service.host import Host, MemoryGuard
from service.job_metrics import job_metrics_app
from service.lane import Lane
from service.link import LinkServer
from service.metrics import count_request
from service.patches import patch_bentoml
from service.roles import SLOTS, Role, read_roles, shadow_slots
from service.rundir import share_run_dir, socket_of
from service.settings import settings
from service.wire import Taken, spoken

logger = logging.getLogger("understudy")
lean.serving = True

_LINGER_S = 15.0
# The thread that reads the online store gives the interpreter up and takes it back several times a read, and a busy
# event loop keeps it for a whole interval each time: with Python's 5 ms a read of 0.5 ms took up to 30.
_SWITCH_S = 0.0005

# Requests leave few cycles behind. With Python's 700 a gateway spent an eighth of its time looking for them.
_COLLECT = (20_000, 10, 10)

try:
    SETTINGS = settings()
    if not read_roles(SETTINGS.models_dir).seats:
        raise NotReady(f"no models in {SETTINGS.models_dir}; run `make train` first")
    tokens(SETTINGS.predict_token, "PREDICT_TOKEN")
    tokens(SETTINGS.admin_token, "ADMIN_TOKEN")
    if "bentoml" in Path(sys.argv[0]).parts[-2:] and sys.argv[1:2] in (["build"], ["deploy"]):
        # A build has no hook of its own (bentoml 1.4.39); it imports this module.
        from feature_repo import features
        from service.changes import refuse as refuse_build
        from service.definitions import contracts

        refuse_build(SETTINGS, contracts(features))
    else:
        if sys.argv[1:2] == ["serve"] and (SETTINGS.redact or SETTINGS.redact_key.get_secret_value()):
            # A gateway that refuses these settings would be started again and again; here the command ends.
            from feature_repo import features
            from service.definitions import contracts
            from service.redaction import redaction_of

            redaction_of(contracts(features)["primary"], SETTINGS.redact, SETTINGS.redact_key)
        SETTINGS = share_run_dir(SETTINGS)
        patch_bentoml()
except (UnderstudyError, ValidationError) as error:
    # BentoML shows its own exceptions as one line and any other as a traceback.
    raise BentoMLException(str(error)) from None

# Its own tracing runs on every request even when nothing is sampled; ours is in tracing.py (bentoml 1.4.39).
_COMMON: dict[str, Any] = {
    "metrics": {"enabled": True},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": [".*"]},
}
_RUNNER: dict[str, Any] = {**_COMMON, "workers": 1}
# Bound once: the package looks its names up anew each time they are asked for (bentoml 1.4.39).
_current = bentoml.get_current_service
# A batch whose every row meets its deadline.
_LONGEST_S = 30


class _Runner:
    role: Role

    def __init__(self) -> None:
        self._host = Host(SETTINGS.models_dir, self.role)
        self._line = LinkServer(socket_of(SETTINGS, self.role), self._host, cpu=SETTINGS.shadow_cpu)
        self._tasks: list[asyncio.Task[None]] = []
        _settle()

    @bentoml.on_startup
    async def open(self) -> None:
        """Take calls, and follow the roles."""
        if self.role in SLOTS:
            # Not before: what starts beside it would keep it from being there in time.
            give_way(SHADOW_NICE)
        await self._line.start()
        self._tasks.append(asyncio.create_task(self._host.follow(self._line.announce)))
        if self.role in SLOTS and SETTINGS.shadow_memory_mb:
            self._tasks.append(asyncio.create_task(MemoryGuard(SETTINGS.shadow_memory_mb << 20).watch()))

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Answer until the gateways have gone: they finish what they have accepted."""
        await self._line.close(_LINGER_S)
        for task in self._tasks:
            task.cancel()


@bentoml.service(name="primary", **_RUNNER)
class Primary(_Runner):
    """Hosts the model whose answers count."""

    role: Role = "primary"


@bentoml.service(name="fallback", **_RUNNER)
class Fallback(_Runner):
    """Hosts the model that answers when the primary cannot; needs no feature store."""

    role: Role = "fallback"


def _shadow(slot: Role) -> Any:
    """Make the service of one slot: it hosts a model that rehearses on live vectors; nobody waits for it."""
    return bentoml.service(name=slot, **_RUNNER)(type(slot, (_Runner,), {"role": slot, "__module__": __name__}))


class _Shadows:
    """What a gateway depends on, one attribute for each slot."""


for _slot in shadow_slots(SETTINGS.shadows):
    setattr(_Shadows, _slot, bentoml.depends(_shadow(_slot)))


# Readiness is the ability to answer, not a shadow's health: BentoML does not ask the runners, `__is_ready__` does.
@bentoml.service(
    name="understudy",
    **_COMMON,
    workers=SETTINGS.workers,
    traffic={"timeout": _LONGEST_S},
    runner_probe={"enabled": False},
)
@bentoml.asgi_app(job_metrics_app(SETTINGS.state_dir / "monitoring"), path="/jobs")
@bentoml.asgi_app(admin_app(lambda: _current().gear), path="/admin")
class Gateway(_Shadows):
    """Validates, looks features up, routes to primary or fallback, logs, and lets the shadows rehearse."""

    # What makes BentoML start and supervise the runners; calls go over `link.py`.
    primary = bentoml.depends(Primary)
    fallback = bentoml.depends(Fallback)

    def __init__(self) -> None:
        with lean.unchecked():
            from service.wiring import assemble

        self.gear = assemble(SETTINGS)
        sys.setswitchinterval(_SWITCH_S)
        _settle()

    @bentoml.api(route="/predict", **spoken("predict", PredictAnswer, SETTINGS.body_limit_bytes))
    async def predict(self, taken: Taken, /) -> Response:
        """Answer one request."""
        return await self.gear.desk.predict(taken)

    @bentoml.api(
        route="/predict_batch", **spoken("predict_batch", list[PredictAnswer | RowRefused], SETTINGS.body_limit_bytes)
    )
    async def predict_batch(self, taken: Taken, /) -> Response:
        """Answer a list of requests, row by row: an answer, or the row's error and problems."""
        return await self.gear.desk.predict_batch(taken)

    @bentoml.api(route="/labels", **spoken("labels", dict[str, int], SETTINGS.body_limit_bytes))
    async def labels(self, taken: Taken, /) -> Response:
        """Take ground truths: one object or a list; a list with one wrong entry is refused whole."""
        return self.gear.desk.label(taken)

    @bentoml.on_startup
    async def open(self) -> None:
        """Meet the runners and warm up; the service is ready after that."""
        await self.gear.start()

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Let the shadows finish what they have, then close the logs."""
        await self.gear.close()

    async def __is_ready__(self) -> bool:
        return self.gear.ready


# The decorator makes a `bentoml.Service` of the class.
Gateway.add_asgi_middleware(  # type: ignore[attr-defined]
    Guard,
    predict_token=SETTINGS.predict_token,
    admin_token=SETTINGS.admin_token,
    body_limit=SETTINGS.body_limit_bytes,
    refused=count_request,
)
# Behind the guard, and of a `bentoml.Service` as above: what is usual goes the short way to the same desk.
Gateway.add_asgi_middleware(  # type: ignore[attr-defined]
    Lane, desk=lambda: _current().gear.desk, body_limit=SETTINGS.body_limit_bytes
)


def _settle() -> None:
    # What is loaded by now lives as long as the process: keep the collector from walking it during requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
