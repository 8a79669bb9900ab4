"""What promotion, rollback and watch share: what may play, which promotion stands, and the mirrors of ``roles.json``.

``models/roles.json`` is the truth. MLflow's aliases and the labels of local Bentos are mirrors of it: every command
here brings them up, so that whatever a kill or a registry that was away left behind is put right by the next one.
``python -m deploy.moves`` does only that, and shows who plays and how it came to be.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.changes import REFUSED, changes
from service.contract import Contract
from service.errors import ContractError, NotReady, PackageError, UnderstudyError
from service.package import PackagedModel, load_package, read_package
from service.progress import Say
from service.roles import Move, Role, Roles, Seat, read_history, read_roles
from service.settings import Settings, settings

# Whoever moves roles has somebody waiting: a registry that is away is told of in seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

PROMOTIONS = ("promote", "force")
NOT_SLOTS = ("primary", "fallback")
_SHOWN = 10


class MoveRefused(UnderstudyError):
    """The roles were not moved; the message names value, limit and fix."""


@dataclass(frozen=True)
class Check:
    """One condition of a move, with its numbers."""

    name: str
    holds: bool
    message: str


@dataclass(frozen=True)
class Mirrors:
    """Whether the mirrors show what ``roles.json`` says.

    Attributes:
        aliases: ``current``, ``behind`` (told why; the next command tries again), or ``none`` without a registry here.
        bentos: per Bento of the local store ``current`` or ``outdated``.
    """

    aliases: str
    bentos: Mapping[str, str]


def named(seat: Seat | None) -> str:
    """A seat as people read it."""
    return f"version {seat.version} ({seat.digest[:12]})" if seat else "nobody"


def seat_of(roles: Roles, role: str) -> Seat:
    """Return who plays a role.

    Raises:
        NotReady: when nobody does.
    """
    found = {str(name): seat for name, seat in roles.seats.items()}.get(role)
    if found is None:
        played = ", ".join(sorted(map(str, roles.seats))) or "none"
        msg = f"nobody plays {role} (seated: {played}); run `make train` first"
        raise NotReady(msg)
    return found


def playable(where: Settings, seat: Seat, contracts: Mapping[str, Contract]) -> tuple[PackagedModel, list[str]]:
    """Make sure that a model can play: its package is whole, it scores, its features exist.

    Returns:
        The model, and what the definitions changed since it was trained that a build would refuse.

    Raises:
        PackageError: when the package is missing, altered, or its model fails on an empty row.
        ContractError: when it needs features the definitions no longer have.
    """
    folder = where.models_dir / seat.package
    model = load_package(folder, seat.version, seat.digest)
    try:
        score = model.score([{}])[0]
    except Exception as error:  # a model that loads may still fail its first row in any way
        msg = f"{folder}: the model fails on an empty row ({error!r}); a runner would refuse it too"
        raise PackageError(msg) from None
    if not math.isfinite(score):
        msg = f"{folder}: the model scores an empty row {score}; a runner's answers would be refused"
        raise PackageError(msg)
    contract = json.loads(read_package(folder, seat.digest)["contract.json"])
    known = contracts.get(contract["name"])
    gone = sorted(set(model.signature.features) - set(known.features if known else ()))
    if known is None or gone:
        what = ", ".join(gone) if known else f"feature service {contract['name']}"
        msg = f"{named(seat)} needs what the definitions no longer have: {what}; `make plan`, then train anew"
        raise ContractError(msg)
    found = [change for change in changes(contract, known.record()) if change.kind in REFUSED]
    return model, [" ".join(str(change).split()) for change in found]


def done_moves(where: Settings) -> list[Move]:
    """Moves that came to pass, in order.

    Raises:
        NotReady: when roles or history cannot be read.
    """
    return [move for move in read_history(where.models_dir) if move.done]


def last_of_primary(history: Sequence[Move]) -> Move | None:
    """The move by which the primary came to play."""
    return next((m for m in reversed(history) if m.after.get("primary") != m.before.get("primary")), None)


def slot_of(promotion: Move) -> Role | None:
    """The slot a promotion emptied."""
    promoted = promotion.after.get("primary")
    return next((r for r, s in promotion.before.items() if r != "primary" and s and promoted == s), None)


def reverted_at(history: Sequence[Move], digest: str) -> datetime | None:
    """When a model was last taken out of play automatically; None when it never was."""
    for move in reversed(history):
        before = move.before.get("primary")
        if move.kind == "revert" and before is not None and before.digest == digest:
            return move.at
    return None


def cooling(where: Settings, history: Sequence[Move], digest: str, now: datetime) -> str:
    """Say why a model that was reverted may not play again yet; empty when it may."""
    at, wait = reverted_at(history, digest), timedelta(days=where.promote_cooldown_days)
    if at is None or not timedelta(0) <= now - at < wait:
        return ""
    return (
        f"was reverted at {at:%Y-%m-%d %H:%M}, {(now - at) / timedelta(days=1):.1f} days ago "
        f"(limit {where.promote_cooldown_days:g} days, promote_cooldown_days)"
    )


def align_registry(where: Settings, say: Say) -> str:
    """Bring MLflow's aliases up to the roles.

    Returns:
        ``current``; ``behind`` when a model that plays is not in the registry; ``none`` where there is no registry.


    Raises:
        RegistryFailed: when MLflow is away.
        AliasMoved: when somebody moved an alias in MLflow.
    """
    if not where.tracking_uri and not (where.state_dir / "mlflow.db").exists():
        return "none"
    # Importing MLflow takes seconds.
    from training.aliases import align, told
    from training.register import connect

    with told(where):
        found = align(connect(where), where.models_dir, say)
    seats = read_roles(where.models_dir).seats
    shown = all(found.get(role) == seat.version for role, seat in seats.items())
    return "current" if shown else "behind"


def mirror(where: Settings, say: Say) -> Mirrors:
    """Bring both mirrors up to the roles; what cannot be reached is told of and left to the next command."""
    from deploy.bento_labels import align_labels

    bentos = align_labels(read_roles(where.models_dir), say)
    try:
        aliases = align_registry(where, say)
    except UnderstudyError as error:
        say(f"the aliases stay behind: {error}; the next promote, rollback, watch or `make roles` brings them up")
        aliases = "behind"
    return Mirrors(aliases, bentos)


def main() -> int:
    """Show the roles and their history, and bring the mirrors up. Last line of stdout: one JSON object."""
    where = settings()
    try:
        roles, history = read_roles(where.models_dir), read_history(where.models_dir)
        for role, seat in sorted(roles.seats.items()):
            print(f"  {role:<10} {named(seat)}")
        for move in history[-_SHOWN:]:
            print(f"  {move.revision:>4}  {move.at:%Y-%m-%d %H:%M}  {told_move(move)}")
        found = mirror(where, lambda text: print(f"  {text}"))
    except UnderstudyError as error:
        print(f"roles: {error}", file=sys.stderr)
        return 1
    seats = {str(role): seat.version for role, seat in roles.seats.items()}
    print(json.dumps({"revision": roles.revision, "roles": seats, "aliases": found.aliases, "bentos": found.bentos}))
    return 0


def told_move(move: Move) -> str:
    """One line on a move."""
    who = ", ".join(f"{role} {named(move.before.get(role))} -> {named(seat)}" for role, seat in move.after.items())
    cut = "" if move.done else " (cut short, counts for nothing)"
    return f"{move.kind:<8} {who}; {move.by}: {move.reason or 'no reason given'}{cut}"


if __name__ == "__main__":
    sys.exit(main())
