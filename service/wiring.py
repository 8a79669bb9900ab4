"""Puts the gateway together: everything outside, chosen by the settings, handed to the router.

Kept apart from ``app.py`` because it imports Feast, which takes seconds: only the gateway's process pays for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import GenericAlias
from typing import Any

from feature_repo import features as definitions
from service import VERSION, metrics
from service.breaker import Breaker, Rules
from service.cast import Actor, Cast, Echo, Watch
from service.clock import Clock, clock_from
from service.contract import Contract
from service.control import Control
from service.courtesy import Busy
from service.definitions import contracts
from service.desk import Desk
from service.door import Door, Label, request_model
from service.errors import NotReady
from service.feature_store import repo_config
from service.features import OnlineLookup, Stored
from service.freshness import DataAge
from service.idle import IdleSeats
from service.link import Link
from service.output import output_check
from service.patches import asked_to_stop
from service.prediction_log import SegmentLog
from service.redaction import redacted
from service.retention import Keep, Retention
from service.roles import SEATS, SLOTS, Role, read_roles, read_signature, shadow_slots
from service.routing import Budget, Router
from service.rundir import socket_of
from service.runners import RemoteRunner
from service.sampling import Sampling
from service.settings import Settings
from service.shadow import Bounds, ShadowPath
from service.split_file import SplitFollower
from service.tracing import Tracer, from_settings
from service.vector import build_vector

logger = logging.getLogger("understudy")

_LOGS = ("predictions", "shadow", "labels")
# The primary is asked again one row at a time, and of few that wait the next is dropped: it has callers to answer.
_AGAIN_QUEUE = 4


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
    paths: tuple[ShadowPath, ...]
    idle: IdleSeats
    logs: dict[str, SegmentLog]
    data_age: DataAge
    retention: Retention
    tracer: Tracer

    @property
    def ready(self) -> bool:
        """Whether a model can answer: the primary's, or the fallback's. Shadows do not matter."""
        return any(watch.ready for watch in self.watches if watch.role not in SLOTS)

    async def start(self) -> None:
        """Connect to the runners, and make sure that nothing is done for the first time while a caller waits."""
        for watch in self.watches:
            watch.start()
        self.control.start()
        self.splits.start()
        self.idle.start()
        self.data_age.start()
        self.retention.start()
        await self._warm()

    async def _warm(self) -> None:
        end = time.monotonic() + self.settings.warmup_s
        seated = set(_seats(self.settings)) & {"primary", "fallback"}
        while time.monotonic() < end and not seated <= {w.role for w in self.watches if w.hello}:
            if asked_to_stop():
                # The runners were, too, and nobody will come.
                break
            await asyncio.sleep(0.05)
        nothing = dict.fromkeys(spec.name for spec in self.contract.request_fields)
        build_vector(self.contract, nothing, Stored(), self.clock.now())
        await self.data_age.look()
        for watch in self.watches:
            await watch.beat()

    async def close(self) -> None:
        """Let the shadows finish what they have, then hang up and close the logs."""
        await self.data_age.close()
        await self.retention.close()
        await self.control.close()
        await self.splits.close()
        await self.idle.close()
        # At once, not in turns: a shadow that hangs must not take the others' time.
        await asyncio.gather(*(path.close(self.settings.shadow_drain_s) for path in self.paths))
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
    shadows = [
        ShadowPath(actor, logs["shadow"], *_rehearsing(settings), valid=valid, busy=Busy()) for actor in cast.shadows
    ]
    again = _again(settings, cast.primary, logs["shadow"], valid)
    lookup = OnlineLookup(repo_config(settings, reads_only=True), contract, vars(definitions))
    budget = Budget(settings.deadline_ms / 1000, settings.fallback_reserve_ms / 1000)
    tracer = from_settings(settings.otlp_endpoint, settings.trace_sample, VERSION, metrics.SPANS_LOST.inc)
    splits = SplitFollower(settings.models_dir)
    router = Router(
        contract,
        lookup,
        cast,
        shadows,
        redacted(logs["predictions"], contract, settings.redact, settings.redact_key),
        clock,
        budget,
        service_version=VERSION,
        valid=valid,
        tracer=tracer,
        splits=splits,
        again=again,
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
        paths=(*shadows, *([again] if again else [])),
        idle=IdleSeats(settings.models_dir, [actor.role for actor in cast]),
        logs=logs,
        data_age=DataAge(lookup, [view.name for view in contract.views], clock, settings.data_age_every_s),
        retention=Retention(
            [settings.log_dir / name for name in _LOGS], Keep(settings.log_keep_days, settings.log_keep_bytes)
        ),
        tracer=tracer,
    )


def _cast(settings: Settings, contract: Contract) -> tuple[Cast, tuple[Watch, ...]]:
    rules = _rules(settings)
    slots = shadow_slots(settings.shadows)
    for slot in slots:
        metrics.expect(slot)
    roles: tuple[Role, ...] = ("primary", "fallback", *slots)
    actors = {r: Actor(r, None, Breaker(rules, changed=partial(metrics.breaker_changed, r))) for r in roles}
    signatures = {role: read_signature(settings.models_dir, role) for role in ("primary", "fallback")}
    rates = [signature.base_rate for signature in signatures.values() if signature is not None]
    shadows = tuple(actors[slot] for slot in slots)
    cast = Cast(actors["primary"], actors["fallback"], shadows, rates[0] if rates else 0.5)
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
        return SEATS


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
        # Every worker asks the same process.
        settings.shadow_cpu / settings.workers,
    )
    return Sampling(settings.shadow_sample, settings.shadow_key), bounds


def _again(settings: Settings, primary: Actor, log: SegmentLog, valid: Callable[[Any], bool]) -> ShadowPath | None:
    if not settings.noise_sample:
        return None
    bounds = Bounds(queue=_AGAIN_QUEUE, batch=1, gather_s=0.0, timeout_s=settings.deadline_ms / 1000)
    return ShadowPath(
        Echo(primary, Breaker(_rules(settings))), log, Sampling(settings.noise_sample), bounds, valid=valid
    )


def documented(endpoint: str) -> Any:
    """Return the type an endpoint's input is documented as."""
    model = request_model(contracts(definitions)["primary"])
    types: dict[str, Any] = {"predict": model, "predict_batch": GenericAlias(list, (model,)), "labels": list[Label]}
    return types[endpoint]
