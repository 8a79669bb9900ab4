"""What BentoML's metrics make of the paths people ask for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware

from service import patches
from service.patches import OTHER, patch_bentoml


class Client:
    """Keeps the labels it was asked for, and counts nothing."""

    def __init__(self) -> None:
        self.endpoints: set[str] = set()

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self

    def labels(self, **labels: Any) -> Client:
        self.endpoints |= {labels["endpoint"]} if "endpoint" in labels else set()
        return self

    def __enter__(self) -> None:
        """As a gauge of what is in progress."""

    def __exit__(self, *_: object) -> None:
        """As a gauge of what is in progress."""


def asked(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[str]]:
    """The endpoints that metrics named, and the paths the application saw."""
    seen: list[str] = []

    async def app(scope: Any, _: Any, send: Any) -> None:
        seen.append(scope["path"])
        assert not [key for key in scope if key.startswith("understudy")]
        await send({"type": "http.response.start", "status": 404})
        await send({"type": "http.response.body"})

    async def send(_: Any) -> None:
        """To nobody."""

    patch_bentoml()
    patch_bentoml()
    monkeypatch.setattr(server_context, "service_routes", ["/predict"], raising=False)
    monkeypatch.setattr(server_context, "service_name", "understudy", raising=False)
    client = Client()
    middleware = RunnerTrafficMetricsMiddleware(app, namespace="bentoml_service", skip_paths=[])
    middleware._setup(metrics_client=client)

    async def ask() -> None:
        for path in paths:
            await middleware({"type": "http", "path": path}, None, send)

    asyncio.run(ask())
    return client.endpoints, seen


def test_a_path_nobody_serves_gets_no_series_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["/predict", "/readyz", *(f"/scan/{i}" for i in range(100)), "/predict/../etc", "/metrics"]

    endpoints, seen = asked(paths, monkeypatch)

    assert endpoints == {"/predict", "/readyz", OTHER}
    assert seen == paths


class Started:
    """A watcher that starts sleeping processes, as circus has them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def spawn_process(self) -> bool:
        """Start one more."""
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self.processes[process.pid] = process
        return True


@pytest.mark.parametrize(
    ("name", "niceness"), [("service_shadow", [0, 10]), ("service_shadow_2", [0, 10]), ("service_primary", [0, 0])]
)
def test_only_a_shadow_that_is_started_again_starts_nicely(
    name: str, niceness: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from circus import watcher  # type: ignore[import-untyped]  # carries no types

    monkeypatch.setattr(watcher, "Watcher", Started)
    patches._restart_shadows_nicely()
    one = Started(name)
    own = os.getpriority(os.PRIO_PROCESS, 0)

    try:
        assert [one.spawn_process(), one.spawn_process()] == [True, True]
        seen = [os.getpriority(os.PRIO_PROCESS, pid) for pid in one.processes]
    finally:
        for process in one.processes.values():
            process.kill()
            process.wait()

    assert seen == [max(own, nice) for nice in niceness]
