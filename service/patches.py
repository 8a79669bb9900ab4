"""What BentoML does not do by itself. The one place that reaches into it (bentoml 1.4.39); delete what it learns.

Its supervisor looks after processes every ten seconds, so that a killed one is missed for that long; in a container it
never starts a dead one again; and a stopped process may hold a shutdown up for a day. Its request timeout never takes
its timers back, so that each request's objects live for that long: 14,000 requests held 73 MB. Its metrics name every
path that anybody asks for, and keep it: a scan for holes is memory that nobody gives back; and they look up each series
by its labels on each request, a tenth of a gateway's time. Its OpenAPI document says of every endpoint that it answers
400, 404 and 500. A Bento runs only the services it was built with: asked for another shadow, it ends with a bare
StopIteration. It gives every process a session, and Linux shares processors between
sessions before it looks at who is nice (``sched_autogroup``, outside containers): the shadow's niceness was none. And
a process it starts again starts at everybody's cost: a second of computing, each time a shadow hangs and is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from functools import wraps
from typing import Any

from service.answers import REFUSALS, Refusal
from service.courtesy import SHADOW_NICE
from service.roles import SLOTS

CHECK_S = 1.0
OTHER = "other"
_GRACE_S = 30.0
_SPAWNED = "understudy_spawned"
_HEALTH = ("/livez", "/readyz", "/healthz")


def patch_bentoml() -> None:
    """Apply them all; harmless when repeated."""
    _supervise_closely()
    _take_timers_back()
    _name_known_endpoints()
    _document_refusals()
    _run_services_a_bento_does_not_list()
    _share_a_session()
    _restart_shadows_nicely()


def asked_to_stop() -> bool:
    """Whether this process was told to end while it starts: uvicorn (0.x) notes it, and goes on starting."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


def _supervise_closely() -> None:
    from bentoml._internal.utils import circus

    plain = circus.Arbiter.__init__
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def closely(self: Any, watchers: Any, *args: Any, **options: Any) -> None:
        for watcher in watchers:
            watcher.respawn = True
            watcher.graceful_timeout = min(watcher.graceful_timeout, _GRACE_S)
        plain(self, watchers, *args, **{**options, "check_delay": CHECK_S})

    circus.Arbiter.__init__ = closely


def _take_timers_back() -> None:
    from bentoml._internal.server.http import traffic
    from starlette.responses import JSONResponse

    async def bounded(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout) as limit:

                async def begun(message: Any) -> None:
                    # Once an answer is on its way it may take its time.
                    if limit.when() is not None:
                        limit.reschedule(None)
                    await send(message)

                await self.app(scope, receive, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"not answered within {self.timeout} s"
            await JSONResponse({"error": text, "problems": []}, status_code=504)(scope, receive, send)

    traffic.TimeoutMiddleware.__call__ = bounded


def _name_known_endpoints() -> None:
    from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware as Traffic

    Traffic.__call__ = _counted


async def _counted(self: Any, scope: Any, receive: Any, send: Any) -> None:
    path = scope.get("path")
    if scope["type"] != "http" or path == "/metrics":
        await self.app(scope, receive, send)
        return
    if not self._is_setup:
        self._setup()
    series = _series_of(self, path)
    if series.last is not None:
        series.last.set_to_current_time()
    begun, status = time.perf_counter(), 0

    async def counted(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            total, seconds = series.answered(status)
            total.inc()
            seconds.observe(time.perf_counter() - begun)
        await send(message)

    series.in_progress.inc()
    try:
        await self.app(scope, receive, counted)
    finally:
        series.in_progress.dec()


class _Series:
    """BentoML's metrics of one endpoint; looking them up by four labels took longer than counting."""

    def __init__(self, metrics: Any, endpoint: str) -> None:
        from bentoml._internal.context import server_context as here

        self._metrics = metrics
        self._answered: dict[int, tuple[Any, Any]] = {}
        service = {
            "service_name": here.bento_name,
            "service_version": here.bento_version,
            "runner_name": here.service_name,
        }
        self._labels = {"endpoint": endpoint, **service}
        self.in_progress = metrics.metrics_request_in_progress.labels(**self._labels)
        watched = not endpoint.startswith(tuple(metrics.skip_paths))
        self.last = metrics.metrics_last_request_timestamp.labels(**service) if watched else None

    def answered(self, status: int) -> tuple[Any, Any]:
        """Return the counter of answers with a status, and the histogram of their seconds."""
        if status not in self._answered:
            labels = {**self._labels, "http_response_code": status}
            both = self._metrics.metrics_request_total, self._metrics.metrics_request_duration
            self._answered[status] = both[0].labels(**labels), both[1].labels(**labels)
        return self._answered[status]


def _series_of(metrics: Any, path: str) -> _Series:
    from bentoml._internal.context import server_context

    known: dict[str, _Series] = metrics.__dict__.setdefault("_understudy_series", {})
    name = path if path in server_context.service_routes or path in _HEALTH else OTHER
    if name not in known:
        known[name] = _Series(metrics, name)
    return known[name]


def _document_refusals() -> None:
    from _bentoml_sdk.service import openapi
    from bentoml._internal.service.openapi.specification import MediaType, Response, Schema

    schema = Refusal.model_json_schema()
    problem = Schema(**schema["$defs"]["Problem"])
    properties = {
        "error": Schema(**schema["properties"]["error"]),
        "problems": Schema(title="Problems", type="array", items=problem),
    }
    refusal = Schema(title="Refusal", type="object", required=schema["required"], properties=properties)
    said = {
        status: Response(description=why, content={"application/json": MediaType(schema=refusal)})
        for status, why in REFUSALS.items()
    }
    openapi.error_responses.clear()
    openapi.error_responses.update(said)


def _run_services_a_bento_does_not_list() -> None:
    from _bentoml_sdk.service import Service
    from bentoml._internal.bento.bento import BentoServiceInfo

    plain = Service.on_load_bento
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def loaded(self: Any, bento: Any) -> None:
        listed = {info.name for info in bento.info.services}
        bento.info.services.extend(
            BentoServiceInfo.from_service(service)
            for name, service in self.all_services().items()
            if name not in listed
        )
        plain(self, bento)

    Service.on_load_bento = loaded


class _Groups:
    """What the supervisor knows as ``os``: a process it starts gets a group of its own, and stays in its session."""

    setsid = staticmethod(os.setpgrp)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _share_a_session() -> None:
    from circus import process  # type: ignore[import-untyped]  # carries no types

    process.os = _Groups()


def _restart_shadows_nicely() -> None:
    from circus.watcher import Watcher  # type: ignore[import-untyped]  # carries no types

    plain = Watcher.spawn_process
    if hasattr(plain, "__wrapped__"):
        return
    shadows = {f"service_{slot}" for slot in SLOTS}

    @wraps(plain)
    def spawned(self: Any, *args: Any, **options: Any) -> Any:
        before = set(self.processes)
        result = plain(self, *args, **options)
        if self.name in shadows:
            # Not the first time: what starts beside it would keep it from being there in time.
            if getattr(self, _SPAWNED, False):
                for pid in set(self.processes) - before:
                    with suppress(OSError):
                        os.setpriority(os.PRIO_PROCESS, pid, SHADOW_NICE)
            setattr(self, _SPAWNED, True)
        return result

    Watcher.spawn_process = spawned
