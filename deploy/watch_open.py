"""Opens a watch with its promotion, and closes it when that promotion stands no longer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from deploy.moves import MoveRefused, done_moves, last_of_primary, slot_of
from deploy.rollback import standing
from deploy.watch_expected import expected
from deploy.watch_record import Status, Watch, folder, read_watch, read_watches, window, write_watch
from monitoring import export
from service.contract import Contract
from service.progress import Say
from service.roles import Move, locked, read_roles
from service.settings import Settings

# What the next move of the primary makes of a watch that was open.
_ENDS: Mapping[str, Status] = {"revert": "reverted", "rollback": "rolled_back"}


def open_newest(where: Settings) -> str:
    """Open the watch of the promotion that stands; returns the path of its record.

    Raises:
        NotReady: when roles, history or the record cannot be read.
    """
    from feature_repo import features
    from service.definitions import contracts

    folder(where.state_dir).mkdir(parents=True, exist_ok=True)
    with locked(folder(where.state_dir) / ".lock"):
        watch = opened(where, contracts(features)["primary"])
    return str(folder(where.state_dir) / f"{watch.revision}.json") if watch else ""


def opened(where: Settings, contract: Contract) -> Watch | None:
    """The watch of the promotion that stands, opened if it was not; None when the primary plays by none."""
    roles, history = read_roles(where.models_dir), done_moves(where)
    try:
        move = standing(roles, history)
    except MoveRefused:
        return None
    promoted, replaced = move.after["primary"], move.before["primary"]
    if promoted is None or replaced is None:
        return None
    path = folder(where.state_dir) / f"{move.revision}.json"
    if path.exists():
        known = read_watch(path)
        # Revisions begin anew with a new models folder.
        if (known.promoted.digest, known.opened) == (promoted.digest, move.at):
            return known
    slot = slot_of(move)
    before = expected(
        export.predictions(where.log_dir, contract).frame, export.shadow(where.log_dir).frame, promoted.digest,
        replaced.digest, move.at, slot, _began([m for m in history if m.revision < move.revision], move),
    )  # fmt: skip
    ends = window(move.at, where.watch_days)
    watch = Watch(move.revision, move.at, ends, slot, promoted, replaced, move.verdict, before)
    write_watch(where.state_dir, watch)
    return watch


def _began(before: list[Move], promotion: Move) -> datetime | None:
    """When the replaced model began to play, by the same clock; None when that is not known."""
    last = last_of_primary(before)
    # A training is dated by the wall clock, which in a replay is no moment of its past.
    return last.at if last is not None and last.at <= promotion.at else None


def close_ended(where: Settings, say: Say) -> Watch | None:
    """Close watches whose promotion stands no longer: by hand, by another promotion, or by a revert that was killed."""
    history = done_moves(where)
    last = last_of_primary(history)
    ended = None
    for watch in read_watches(where.state_dir):
        if watch.status != "open" or last is None or last.revision == watch.revision:
            continue
        changed = (m for m in history if m.revision > watch.revision)
        move = next((m for m in changed if m.after.get("primary") != m.before.get("primary")), None)
        if move is None:
            continue
        ended = watch.ended(_ENDS.get(move.kind, "superseded"), move.at, _told(move))
        write_watch(where.state_dir, ended)
        say(f"the watch of revision {watch.revision} has ended: {ended.status}, {ended.why}")
    return ended


def _told(move: Move) -> str:
    return f"{move.kind} at revision {move.revision} by {move.by}: {move.reason or 'no reason given'}"
