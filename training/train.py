"""Trains at a moment of the clock and proposes what came out: the first time as primary and fallback, then as shadow.

Nothing that became known after AS_OF is seen. Nothing is registered or seated unless every step before succeeded and
the gate let the candidates pass. A training that is killed leaves what was there; the next one says what it repaired.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from feast import FeatureStore

from feature_repo import features as definitions
from service.clock import parse_instant
from service.definitions import contracts
from service.errors import UnderstudyError
from service.idle import idle_seats
from service.package import save_package
from service.progress import Progress, Say
from service.roles import SEATS, Role, Roles, Seat, hold_roles, kind_of, locked, read_roles, shadow_slots
from service.settings import Settings, settings
from training import estimator, gate
from training.dataset import join_features
from training.estimators import FITTERS
from training.fitting import Fitted, fit_role, known_rows
from training.prepare import prepare
from training.record import environment, table_hashes
from training.store import apply, materialize, open_store
from training.validate import validate_rows

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from training.aliases import Aliases

SEED = 7


def train(
    settings_: Settings,
    at: datetime,
    asked: str,
    seed: int,
    say: Say,
    raw: Path | None = None,
    estimator_name: str = "",
    forced: str = "",
) -> dict[str, Any]:
    """Run a training and return what it made.

    Args:
        at: nothing known later is used.
        raw: folder of the raw tables; None for the installed data package.
        estimator_name: one of ``estimators.FITTERS`` instead of each role's own.
        asked: a role, or ``auto``: primary and fallback when nobody is primary, otherwise a shadow.
        forced: why candidates pass whatever the gate finds; "" when they do not. Kept in their records.

    Raises:
        UnderstudyError: when data, gate, registry or roles do not allow it; what was there before is untouched.
    """
    before = read_roles(settings_.models_dir)
    settings_.state_dir.mkdir(parents=True, exist_ok=True)
    # Two trainings at once would write over each other's tables.
    with locked(settings_.state_dir / ".train.lock"):
        prepared = prepare(settings_, raw)
        say(f"prepared {prepared['rows']['rows']:,} rows")
        tables = table_hashes(settings_.state_dir, prepared["rows"])
        store = open_store(settings_)
        apply(store, settings_)
    data = {"raw": prepared["raw"], "source": prepared["code"], "tables": tables}
    rows = known_rows(pd.read_parquet(settings_.state_dir / "rows.parquet"), at)
    client, aliases = _connect(settings_, say)
    fitted = []
    for role in _roles(asked, before):
        fitted.append(_fit(settings_, store, rows, role, at, seed, estimator_name, say))
        say(f"fitted {role} on {fitted[-1].rows:,} rows, AUC {fitted[-1].metrics['auc']:.4f} on the 28 days before")
    _judge(settings_, fitted, at, forced, say)
    candidates = [(item, _record(item, at, seed, data, forced)) for item in fitted]
    why = f"training as of {at:%Y-%m-%d %H:%M} UTC" + (f", gate passed over: {forced}" if forced else "")
    seats = keep(settings_, client, aliases, before, candidates, why, say)
    for idle in idle_seats(seats, ("primary", "fallback", *shadow_slots(settings_.shadows))).values():
        say(idle)
    filled = materialize(store, contracts(definitions)["primary"], at)
    say(f"wrote {sum(f.written for f in filled):,} rows to the online store")
    return {
        "as_of": at.isoformat(),
        "roles": {role: seat.version for role, seat in seats.items()},
        **{"auc" if f.role != "fallback" else "fallback_auc": round(f.metrics["auc"], 4) for f in fitted},
    }


def _roles(asked: str, before: Roles) -> tuple[Role, ...]:
    if asked == "auto":
        return ("shadow",) if "primary" in before.seats else ("primary", "fallback")
    return tuple(role for role in SEATS if role == asked)


def _fit(
    settings_: Settings,
    store: FeatureStore,
    rows: pd.DataFrame,
    role: Role,
    at: datetime,
    seed: int,
    estimator_name: str,
    say: Say,
) -> Fitted:
    contract = contracts(definitions)[estimator.FEATURE_SERVICE[kind_of(role)]]
    frame = join_features(store, rows, contract)
    validate_rows(settings_, role, frame, contract, at, say).require()
    # A slot is where a model rehearses; what it is fitted and judged as is a shadow.
    return replace(fit_role(kind_of(role), frame, contract, at, seed, estimator_name), role=role)


def _connect(settings_: Settings, say: Say) -> tuple[MlflowClient, Aliases]:
    # Before anything takes long: a registry that is away or at odds with roles.json is told of at once.
    from training.aliases import align, told
    from training.register import connect

    with told(settings_), locked(settings_.state_dir / ".train.lock"):
        client = connect(settings_)
        return client, align(client, settings_.models_dir, say)


def _judge(settings_: Settings, fitted: Sequence[Fitted], at: datetime, forced: str, say: Say) -> None:
    folder = settings_.state_dir / "gate"
    failed = {item.role: gate.judge(folder, settings_.models_dir, item, at, forced, say) for item in fitted}
    if not forced:
        gate.require(failed, folder)
    for role, checks in failed.items():
        for check in checks:
            say(f"gate: {role}: passed over ({forced}): {check.message}")


def keep(
    settings_: Settings,
    client: MlflowClient,
    aliases: Aliases,
    before: Roles,
    candidates: Sequence[tuple[Fitted, dict[str, Any]]],
    why: str,
    say: Say,
) -> dict[Role, Seat]:
    """Package, log, register and seat what was fitted; return the seats that changed.

    Args:
        aliases: where they pointed when the training began.
        before: the roles then.
        candidates: models with their records.

    Raises:
        RolesMoved: when somebody else moved the roles since; nothing was registered.
        AliasMoved: when somebody else moved an alias since; nothing was registered.
        RegistryFailed: when MLflow fails; nothing was seated.
    """
    from training.aliases import move_alias, require_alias, told
    from training.register import log_model, register

    logged = []
    with told(settings_):
        for item, record in candidates:
            docs = settings_.state_dir / "validation" / item.role / "index.html"
            digest, folder = save_package(
                settings_.models_dir, item.model, item.signature, item.baseline, record, item.contract, item.reference
            )
            same = [role for role, seat in before.seats.items() if seat.digest == digest]
            if same:
                say(f"the new model is the one that plays {same[0]} already; {item.role} stays as it was")
                continue
            logged.append((item.role, digest, folder, log_model(item, record, digest, docs)))
    if not logged:
        return {}
    # All are logged before any is registered, and none is registered by who has lost the race for the roles.
    with told(settings_), hold_roles(settings_.models_dir, before.revision) as move:
        for role, *_ in logged:
            require_alias(client, role, aliases.get(role))
        seats = {
            role: Seat(register(client, model), digest, str(folder.relative_to(settings_.models_dir)))
            for role, digest, folder, model in logged
        }
        move(seats, why)
        for role, seat in seats.items():
            say(f"{role} is now version {seat.version} ({seat.digest[:12]})")
            try:
                with told(settings_):
                    move_alias(client, role, aliases.get(role), seat.version)
            except UnderstudyError as error:
                # The roles are what counts, and they are moved: not a failure, and the next training sees to it.
                say(f"alias {role} stays behind: {error}")
    return seats


def _record(fitted: Fitted, at: datetime, seed: int, data: dict[str, Any], forced: str) -> dict[str, Any]:
    # Part of the package, whose digest is to come out again: nothing of this one run may be in it.
    return {
        "as_of": at.isoformat(),
        "seed": seed,
        "estimator": fitted.estimator,
        "parameters": fitted.parameters,
        "rows": fitted.rows,
        "metrics": fitted.metrics,
        "data": data,
        "data_digest": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
        "feature_service": fitted.signature.service,
        "contract": fitted.signature.contract,
        "environment": environment(),
        **({"gate_passed_over": forced} if forced else {}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--as-of", required=True, type=parse_instant, help="ISO date or instant (UTC)")
    parser.add_argument("--role", default="auto", choices=["auto", *SEATS])
    parser.add_argument("--seed", default=SEED, type=int)
    parser.add_argument("--estimator", default="", choices=["", *FITTERS], help="instead of each role's own")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    parser.add_argument("--force-gate", action="store_true", help="pass whatever the gate finds; needs --reason")
    parser.add_argument("--reason", default="", help="why, kept in the model's record")
    args = parser.parse_args(argv)
    if args.force_gate != bool(args.reason.strip()):
        parser.error("--force-gate and --reason TEXT go together: say why the gate is passed over")
    say = Progress(sys.stdout)
    try:
        result = train(settings(), args.as_of, args.role, args.seed, say, args.raw, args.estimator, args.reason.strip())
    except UnderstudyError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**result, "seconds": round(say.seconds, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
