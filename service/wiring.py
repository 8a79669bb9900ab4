"""Puts the gateway together: everything outside, chosen by the settings, handed to the router.

Kept apart from ``app.py`` because it imports Feast, which takes seconds: only the gateway's process pays for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from feature_repo import features as definitions
from service import VERSION
from service.clock import Clock, clock_from
from service.contract import Contract
from service.definitions import contracts
from service.door import Door, Label, request_model
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.freshness import DataAge
from service.package import Signature
from service.prediction_log import SegmentLog
from service.roles import Role, read_signature
from service.routing import Router, Understudies
from service.runners import RemoteRunner
from service.settings import Settings
from service.shadow import ShadowPath

logger = logging.getLogger("understudy")


@dataclass(frozen=True)
class Gear:
    """What a gateway works with."""

    clock: Clock
    door: Door
    router: Router
    shadow: ShadowPath
    predictions: SegmentLog
    shadows: SegmentLog
    labels: SegmentLog
    data_age: DataAge


def assemble(settings: Settings, primary: Any, fallback: Any, shadow: Any) -> Gear:
    """Build a gateway's gear around the three runners' proxies.

    Raises:
        ContractError: when the feature definitions contradict themselves.
        NotReady: when the clock cannot be read.
    """
    contract = contracts(definitions)["primary"]
    clock = clock_from(settings.clock)
    logs = {
        name: SegmentLog(settings.log_dir / name, settings.segment_bytes)
        for name in ("predictions", "shadow", "labels")
    }
    shadow_s = settings.shadow_timeout_ms / 1000
    path = ShadowPath(
        RemoteRunner(shadow, shadow_s) if _fitting(settings, "shadow", contract) else None,
        logs["shadow"],
        sample=settings.shadow_sample,
        queue=settings.shadow_queue,
        batch=settings.shadow_batch,
        timeout_s=shadow_s,
    )
    lookup = OnlineLookup(repo_config(settings, reads_only=True), contract, vars(definitions))
    router = Router(
        contract,
        lookup,
        _understudies(settings, contract, primary, fallback),
        path,
        logs["predictions"],
        clock,
        deadline_s=settings.deadline_ms / 1000,
        reserve_s=settings.fallback_reserve_ms / 1000,
        service_version=VERSION,
    )
    door = Door(contract, clock, settings.batch_limit)
    data_age = DataAge(lookup, [view.name for view in contract.views], clock, settings.data_age_every_s)
    return Gear(clock, door, router, path, logs["predictions"], logs["shadow"], logs["labels"], data_age)


def _understudies(settings: Settings, contract: Contract, primary: Any, fallback: Any) -> Understudies:
    # Twice the deadline: long enough that a slow call still counts, short enough that a hung one frees its place.
    call_s = 2 * settings.deadline_ms / 1000
    roles: tuple[Role, ...] = ("primary", "fallback")
    signatures = {role: _fitting(settings, role, contract) for role in roles}
    base_rates = [s.base_rate for s in signatures.values() if s is not None]
    return Understudies(
        primary=RemoteRunner(primary, call_s) if signatures["primary"] else None,
        fallback=RemoteRunner(fallback, call_s) if signatures["fallback"] else None,
        fallback_signature=signatures["fallback"],
        base_rate=base_rates[0] if base_rates else 0.5,
    )


def _fitting(settings: Settings, role: Role, contract: Contract) -> Signature | None:
    """A role's signature, unless its model takes inputs this contract does not have: it would be given nulls."""
    signature = read_signature(settings.models_dir, role)
    unknown = sorted(set(signature.features) - set(contract.features)) if signature else []
    if not unknown:
        return signature
    logger.error(
        "the model that plays %s was trained on features the definitions no longer have (%s); it does not answer "
        "until `make train` seats one that fits", role, ", ".join(unknown),
    )  # fmt: skip
    return None


def documented(endpoint: str) -> Any:
    """Return the type an endpoint's input is documented as."""
    model = request_model(contracts(definitions)["primary"])
    types: dict[str, Any] = {"predict": model, "predict_batch": GenericAlias(list, (model,)), "labels": list[Label]}
    return types[endpoint]
