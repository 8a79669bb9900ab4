"""Puts the primary back that played before the last promotion: ``python -m deploy.rollback``.

Moves ``roles.json`` first and asks MLflow afterwards, so that it works while MLflow is down. A second rollback in a row
is refused rather than guessed at: ``--to REVISION`` says which primary is meant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.moves import (
    NOT_SLOTS,
    PROMOTIONS,
    MoveRefused,
    cooling,
    done_moves,
    last_of_primary,
    mirror,
    named,
    playable,
    seat_of,
    slot_of,
)
from deploy.promote import told
from deploy.promote_wait import wait_for
from service.clock import clock_from
from service.contract import Contract
from service.errors import UnderstudyError
from service.progress import Say
from service.roles import Kind, Move, Role, Roles, Seat, hold_roles, read_roles
from service.settings import Settings, settings


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        restored: who is primary again.
        removed: who was.
        slot: where the removed one rehearses now; None when it plays nothing.
    """

    roles: Roles
    restored: Seat
    removed: Seat
    slot: str | None


def rollback(
    where: Settings,
    contracts: Mapping[str, Contract],
    say: Say,
    *,
    reason: str = "",
    to: int | None = None,
    force: bool = False,
    kind: Kind = "rollback",
    expected: int | None = None,
) -> RolledBack:
    """Restore the primary from before the last promotion, or the one of a revision.

    Args:
        to: revision whose primary is meant; None: the one before the last promotion.
        force: restore a model that was taken back by itself a short while ago, too.
        expected: revision of the roles that the decision was made on; None: as they are now.

    Raises:
        MoveRefused: when there is no promotion to take back, or it was taken back already.
        PackageError, ContractError: when the model can no longer play; nothing was moved.
        RolesMoved: when somebody else moved the roles meanwhile.
    """
    if to is not None and not reason:
        raise MoveRefused(f"TO={to} needs REASON=...: say why, it stays in the history")
    roles, history = read_roles(where.models_dir), done_moves(where)
    removed = seat_of(roles, "primary")
    if to is None:
        promotion = standing(roles, history)
        seats = _before(roles, promotion)
    else:
        seats = _at(where, roles, history, to, force=force)
    restored = seats["primary"]
    assert restored is not None
    _, changed = playable(where, restored, contracts)
    for change in changed:
        say(f"the definitions changed since {named(restored)} was trained: {change}")
    held = roles.revision if expected is None else expected
    with hold_roles(where.models_dir, held, clock_from(where.clock)) as move:
        after = move(seats, reason, kind=kind)
    slot = next((str(r) for r, seat in after.seats.items() if r not in NOT_SLOTS and seat == removed), None)
    return RolledBack(after, restored, removed, slot)


def standing(roles: Roles, history: Sequence[Move]) -> Move:
    """Return the promotion by which the primary plays.

    Raises:
        MoveRefused: when it plays by something else; says by what, and what can be done.
    """
    last = last_of_primary(history)
    if last is None or last.after.get("primary") != roles.seats.get("primary"):
        raise MoveRefused("the history knows no promotion of the present primary, so none can be taken back")
    if last.kind in PROMOTIONS:
        return last
    when = f"at revision {last.revision} ({last.kind}, {last.at:%Y-%m-%d %H:%M})"
    if last.kind == "train":
        raise MoveRefused(f"the primary was seated by training {when}, not by a promotion; {_choices(history)}")
    raise MoveRefused(f"the last promotion was taken back already {when}; {_choices(history)}")


def _before(roles: Roles, promotion: Move) -> dict[Role, Seat | None]:
    """The seats that take a promotion back; whoever was seated in its slot since stays there."""
    before = promotion.before["primary"]
    if before is None:
        raise MoveRefused(f"nobody was primary before revision {promotion.revision}; run `make train`")
    seats: dict[Role, Seat | None] = {"primary": before}
    slot = slot_of(promotion)
    if slot is not None and slot not in roles.seats:
        seats[slot] = promotion.after["primary"]
    return seats


def _at(where: Settings, roles: Roles, history: Sequence[Move], to: int, *, force: bool) -> dict[Role, Seat | None]:
    """The seats that restore the primary as it was after a revision; who is replaced takes the slot that falls free."""
    made = [move for move in history if move.revision <= to and move.after.get("primary") is not None]
    if not made or to > roles.revision:
        raise MoveRefused(f"nobody is known to have been primary at revision {to}; {_choices(history)}")
    seat, now = made[-1].after["primary"], roles.seats.get("primary")
    assert seat is not None
    if now is not None and now.digest == seat.digest:
        raise MoveRefused(f"the primary of revision {to} plays already: {named(seat)}")
    waits = cooling(where, history, seat.digest, clock_from(where.clock).now())
    if waits and not force:
        raise MoveRefused(f"{named(seat)} {waits}: wait, or add FORCE=1")
    freed = [role for role, taken in roles.seats.items() if role not in NOT_SLOTS and taken.digest == seat.digest]
    return {"primary": seat, **dict.fromkeys(freed, now)}


def _choices(history: Sequence[Move]) -> str:
    """The primaries one can go back to, the newest first."""
    known: dict[str, str] = {}
    for move in reversed(history):
        seat = move.after.get("primary")
        if seat is not None:
            known.setdefault(seat.digest, f"TO={move.revision} is version {seat.version}")
    listed = ", ".join(list(known.values())[:5])
    return f"name the primary you mean, with REASON=...: {listed}" if listed else "there is nothing to go back to"


def main(arguments: Sequence[str] | None = None) -> int:
    """Roll back, wait for the service, bring the mirrors up, and return the exit code."""
    options = _parser().parse_args(arguments)
    where = settings()
    try:
        from feature_repo import features
        from service.definitions import contracts

        done = rollback(
            where, contracts(features), told, reason=options.reason.strip(), to=options.to, force=options.force
        )
    except UnderstudyError as error:
        sys.stderr.write(f"rollback: {error}\n")
        return 1
    rests = f"it rehearses as {done.slot}" if done.slot else "it plays nothing now"
    print(f"==> primary is {named(done.restored)} again, it was {named(done.removed)}; {rests}", flush=True)
    waited = wait_for(options.url, where, {"primary": done.restored.digest}, told)
    mirrors = mirror(where, told)
    line = {
        "restored": done.restored.version,
        "removed": done.removed.version,
        "slot": done.slot,
        "revision": done.roles.revision,
        "aliases": mirrors.aliases,
        "bentos": dict(mirrors.bentos),
        "seconds": waited.seconds if waited else None,
        "workers": waited.workers if waited else None,
    }
    print(json.dumps(line))
    return 0 if waited is None or waited.everybody else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make rollback", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reason", default="", help="why; kept in the history")
    parser.add_argument("--to", type=int, help="revision whose primary is meant (default: before the last promotion)")
    parser.add_argument("--force", action="store_true", help="also back to a model that was taken back by itself")
    parser.add_argument("--url", default="", help="running service to wait for; needs the setting admin_token")
    return parser


if __name__ == "__main__":
    sys.exit(main())
