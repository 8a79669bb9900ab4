"""Puts the gateway together: everything outside, chosen by the settings, handed to the router.

Kept apart from ``app.py`` because it imports Feast, which takes seconds: only the gateway's process pays for it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from types import GenericAlias
from typing import Any

from feature_repo import features as definitions
from service import VERSION, metrics
from service.breaker import Breaker, Rules
from service.cast import Actor, Cast, Watch
from service.clock import Clock, clock_from
from service.contract import Contract
from service.control import Control
from service.definitions import contracts
from service.desk import Desk
from service.door import Door, Label, request_model
from service.errors import NotReady
from service.feature_store import repo_config
from service.features import OnlineLookup, Stored
from service.freshness import DataAge
from service.link import Link
from service.output import output_check
from service.prediction_log import SegmentLog
from service.retention import Keep, Retention
from service.roles import ROLES, Role, read_roles, read_signature
from service.routing import Budget, Router
from service.rundir import socket_of
from service.runners import RemoteRunner
from service.settings import Settings
from service.shadow import Bounds, Sampling, ShadowPath
from service.split_file import SplitFollower
from service.tracing import Tracer, from_settings
from service.vector import build_vector

_LOGS = ("predictions", "shadow", "labels")


@dataclass(frozen=True)
class Gear:
    """What a gateway works with."""

    settings: Settings
    clock: Clock
    contract: Contract
    lookup: OnlineLookup
    cast: Cast
    watches: tuple[Watch, ...]
    control: Control
    splits: SplitFollower
    desk: Desk
    shadow: ShadowPath
    logs: dict[str, SegmentLog]
    data_age: DataAge
    retention: Retention
    tracer: Tracer

    @property
    def ready(self) -> bool:
        """Whether a model can answer: the primary's, or the fallback's. The shadow does not matter."""
        return any(watch.ready for watch in self.watches if watch.role != "shadow")

    async def start(self) -> None:
        """Connect to the runners, and make sure that nothing is done for the first time while a caller waits."""
        for watch in self.watches:
            watch.start()
        self.control.start()
        self.splits.start()
        self.data_age.start()
        self.retention.start()
        await self._warm()

    async def _warm(self) -> None:
        end = time.monotonic() + self.settings.warmup_s
        seated = set(_seats(self.settings)) - {"shadow"}
        while time.monotonic() < end and not seated <= {w.role for w in self.watches if w.hello}:
            await asyncio.sleep(0.05)
        nothing = dict.fromkeys(spec.name for spec in self.contract.request_fields)
        build_vector(self.contract, nothing, Stored(), self.clock.now())
        await self.data_age.look()
        for watch in self.watches:
            await watch.beat()

    async def close(self) -> None:
        """Let the shadow finish what it has, then hang up and close the logs."""
        await self.data_age.close()
        await self.retention.close()
        await self.control.close()
        await self.splits.close()
        await self.shadow.close(self.settings.shadow_drain_s)
        for watch in self.watches:
            await watch.close()
        for log in self.logs.values():
            log.close()
        await asyncio.to_thread(self.tracer.close)


def assemble(settings: Settings) -> Gear:
    """Build a gateway's gear; nothing is connected yet.

    Raises:
        ContractError: when the feature definitions contradict themselves.
        NotReady: when the clock cannot be read.
    """
    contract = contracts(definitions)["primary"]
    clock = clock_from(settings.clock)
    logs = {name: SegmentLog(settings.log_dir / name, settings.segment_bytes) for name in _LOGS}
    cast, watches = _cast(settings, contract)
    valid = output_check(contract.output)
    shadow = ShadowPath(cast.shadow, logs["shadow"], *_rehearsing(settings), valid=valid)
    lookup = OnlineLookup(repo_config(settings, reads_only=True), contract, vars(definitions))
    budget = Budget(settings.deadline_ms / 1000, settings.fallback_reserve_ms / 1000)
    tracer = from_settings(settings.otlp_endpoint, settings.trace_sample, VERSION, metrics.SPANS_LOST.inc)
    splits = SplitFollower(settings.models_dir)
    router = Router(
        contract,
        lookup,
        cast,
        shadow,
        logs["predictions"],
        clock,
        budget,
        service_version=VERSION,
        valid=valid,
        tracer=tracer,
        splits=splits,
    )
    for view in contract.views:
        if view.max_staleness is not None:
            metrics.MAX_STALENESS.labels(view.name).set(view.max_staleness.total_seconds())
    door = Door(contract, clock, settings.batch_limit)
    return Gear(
        settings=settings,
        clock=clock,
        contract=contract,
        lookup=lookup,
        cast=cast,
        watches=watches,
        control=Control(settings.state_dir / "breakers.json", cast),
        splits=splits,
        desk=Desk(door, router, logs["labels"], clock, settings.max_inflight),
        shadow=shadow,
        logs=logs,
        data_age=DataAge(lookup, [view.name for view in contract.views], clock, settings.data_age_every_s),
        retention=Retention(
            [settings.log_dir / name for name in _LOGS], Keep(settings.log_keep_days, settings.log_keep_bytes)
        ),
        tracer=tracer,
    )


def _cast(settings: Settings, contract: Contract) -> tuple[Cast, tuple[Watch, ...]]:
    rules = _rules(settings)
    actors = {r: Actor(r, None, Breaker(rules, changed=partial(metrics.breaker_changed, r))) for r in ROLES}
    signatures = {role: read_signature(settings.models_dir, role) for role in ("primary", "fallback")}
    rates = [signature.base_rate for signature in signatures.values() if signature is not None]
    cast = Cast(actors["primary"], actors["fallback"], actors["shadow"], rates[0] if rates else 0.5)
    return cast, tuple(_watch(settings, contract, cast, actor) for actor in cast)


def _watch(settings: Settings, contract: Contract, cast: Cast, actor: Actor) -> Watch:
    link = Link(socket_of(settings, actor.role))
    runner = RemoteRunner(link)
    if actor.role in _seats(settings):
        # Until its runner has said who it is.
        actor.runner = runner

    def rated(base_rate: float) -> None:
        if actor.role == "primary":
            cast.base_rate = base_rate

    watch = Watch(
        actor,
        link,
        runner,
        contract.features,
        hung_s=settings.runner_hung_s,
        rated=rated,
        valid=output_check(contract.output),
    )
    link.listen(watch.heard)
    return watch


def _seats(settings: Settings) -> tuple[Role, ...]:
    try:
        return tuple(read_roles(settings.models_dir).seats)
    except NotReady:
        return ROLES


def _rules(settings: Settings) -> Rules:
    return Rules(
        error_rate=settings.breaker_error_rate,
        slow_rate=settings.breaker_slow_rate,
        slow_s=(settings.breaker_slow_ms or settings.deadline_ms / 2) / 1000,
        window_s=settings.breaker_window_s,
        min_calls=settings.breaker_min_calls,
        open_s=settings.breaker_open_s,
        probes=settings.breaker_probes,
    )


def _rehearsing(settings: Settings) -> tuple[Sampling, Bounds]:
    bounds = Bounds(
        settings.shadow_queue,
        settings.shadow_batch,
        settings.shadow_gather_ms / 1000,
        settings.shadow_timeout_ms / 1000,
    )
    return Sampling(settings.shadow_sample, settings.shadow_key), bounds


def documented(endpoint: str) -> Any:
    """Return the type an endpoint's input is documented as."""
    model = request_model(contracts(definitions)["primary"])
    types: dict[str, Any] = {"predict": model, "predict_batch": GenericAlias(list, (model,)), "labels": list[Label]}
    return types[endpoint]
