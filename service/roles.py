"""Which package plays which role: ``models/roles.json``, moved only by compare-and-set.

Beside it ``roles.history.jsonl``, one line per move, never rewritten. The line is on disk before the roles move: a
kill in between leaves a line whose revision roles.json never reached, which :func:`read_history` tells from the others.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from service.clock import Clock, WallClock, parse_instant
from service.errors import NotReady, PackageError, UnderstudyError
from service.journal import append_line, mover, replace_text
from service.package import PackagedModel, Signature, load_package, read_package

Role = Literal["primary", "fallback", "shadow", "shadow_2", "shadow_3", "shadow_4"]
# What a model may be; the seats of shadows are numbered, so that several rehearse at once.
ROLES: tuple[Role, ...] = ("primary", "fallback", "shadow")
SLOTS: tuple[Role, ...] = ("shadow", "shadow_2", "shadow_3", "shadow_4")
SEATS: tuple[Role, ...] = ("primary", "fallback", *SLOTS)
HISTORY = "roles.history.jsonl"
Kind = Literal["train", "promote", "force", "rollback", "revert"]


class RolesMoved(UnderstudyError):
    """Somebody else moved the roles since they were read."""


@dataclass(frozen=True)
class Seat:
    """The package that sits in a role.

    Attributes:
        version: version in the model registry.
        digest: the package's digest (SHA-256 of its manifest).
        package: folder of the package, relative to the models folder.
    """

    version: str
    digest: str
    package: str


@dataclass(frozen=True)
class Roles:
    """One state of the roles; ``revision`` grows by one with every move."""

    revision: int
    seats: Mapping[Role, Seat]


class NoSuchRole(UnderstudyError):
    """A role that no service has."""


def shadow_slots(count: int) -> tuple[Role, ...]:
    """Return the seats of so many shadows: ``shadow``, ``shadow_2``, ``shadow_3``, ``shadow_4``.

    Raises:
        NoSuchRole: when there are not so many.
    """
    if not 1 <= count <= len(SLOTS):
        msg = f"shadows={count} is out of range (1 to {len(SLOTS)}); set UNDERSTUDY_SHADOWS within it"
        raise NoSuchRole(msg)
    return SLOTS[:count]


def kind_of(role: Role) -> Role:
    """Return what a model in a seat is: ``primary``, ``fallback`` or ``shadow``."""
    return "shadow" if role in SLOTS else role


def read_roles(models_dir: Path) -> Roles:
    """Return the current roles; revision 0 with no seats when nothing was trained yet.

    Raises:
        NotReady: when the file exists but cannot be read.
    """
    path = models_dir / "roles.json"
    try:
        plain = json.loads(path.read_text())
        return Roles(plain["revision"], {role: Seat(**seat) for role, seat in plain["roles"].items()})
    except FileNotFoundError:
        return Roles(0, {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} cannot be read ({error}); restore it or run `make train`"
        raise NotReady(msg) from None


@dataclass(frozen=True)
class Move:
    """One line of the history.

    Attributes:
        revision: of the roles after the move.
        at: by the wall clock.
        by: user and host.
        reason: why, in the mover's words.
        before, after: the roles that changed; None where nobody plays.
        done: whether roles.json was moved; False for one that a kill cut short.
        kind: what moved them; ``force`` is a promotion without a verdict, ``revert`` a rollback nobody asked for.
        verdict: digest of the verdict a promotion rests on.
    """

    revision: int
    at: datetime
    by: str
    reason: str
    before: Mapping[Role, Seat | None]
    after: Mapping[Role, Seat | None]
    done: bool
    kind: Kind = "train"
    verdict: str | None = None


class Mover(Protocol):
    """Moves the roles, once: who sits where from now on (None empties a role), why, and on what grounds."""

    def __call__(
        self, moves: Mapping[Role, Seat | None], reason: str, *, kind: Kind = "train", verdict: str | None = None
    ) -> Roles:
        """Return the roles after the move."""
        ...


def move_roles(models_dir: Path, expected: int, moves: Mapping[Role, Seat | None], reason: str = "") -> Roles:
    """Seat packages in roles (None empties one) if the revision is still ``expected``.

    Raises:
        RolesMoved: when the revision is another one; nothing was changed.
    """
    with hold_roles(models_dir, expected) as move:
        return move(moves, reason)


@contextmanager
def hold_roles(models_dir: Path, expected: int, clock: Clock | None = None) -> Iterator[Mover]:
    """Keep everybody else from moving the roles; gives the function that moves them, once.

    For what must happen together with a move. Whoever only reads the roles does not wait.

    Raises:
        RolesMoved: when the revision is another one; nothing was changed.
        NoSuchRole: by the function, for a role that there is not; nothing was changed.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    with locked(models_dir / ".roles.lock"):
        current = read_roles(models_dir)
        if current.revision != expected:
            msg = f"roles are at revision {current.revision}, not {expected}: someone moved them; look again and retry"
            raise RolesMoved(msg)

        def move(
            moves: Mapping[Role, Seat | None], reason: str, *, kind: Kind = "train", verdict: str | None = None
        ) -> Roles:
            unknown = sorted(str(role) for role, seat in moves.items() if seat is not None and role not in SEATS)
            if unknown:
                raise NoSuchRole(f"there is no role {', '.join(unknown)}; seat the model as one of {', '.join(SEATS)}")
            seats = {**current.seats, **moves}
            updated = Roles(expected + 1, {role: seat for role, seat in seats.items() if seat is not None})
            before = {role: current.seats.get(role) for role in moves}
            at = (clock or WallClock()).now()
            made = Move(updated.revision, at, mover(), reason, before, moves, True, kind, verdict)
            append_line(models_dir / HISTORY, _line(made))
            plain = {
                "revision": updated.revision,
                "roles": {role: asdict(seat) for role, seat in updated.seats.items()},
            }
            replace_text(models_dir / "roles.json", json.dumps(plain, indent=1, sort_keys=True) + "\n")
            return updated

        yield move


def read_history(models_dir: Path) -> list[Move]:
    """Return every move in order; a line that a crash tore is left out.

    Raises:
        NotReady: when roles.json or the history exists but cannot be read.
    """
    try:
        lines = (models_dir / HISTORY).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        msg = f"{models_dir / HISTORY} cannot be read ({error}); restore it or move it away"
        raise NotReady(msg) from None
    found = [plain for plain in map(_parsed, lines) if plain]
    now = read_roles(models_dir).revision
    # The next move starts from where roles.json stood: from this line's revision, if this move came to pass.
    reached = [*(plain["revision"] - 1 for plain in found[1:]), now]
    return [_move(plain, plain["revision"] <= after) for plain, after in zip(found, reached, strict=True)]


def load_role(models_dir: Path, role: Role) -> PackagedModel:
    """Verify and load the model that plays ``role``.

    Raises:
        NotReady: when nothing plays it; the message names the command that fills it.
        PackageError: when its package cannot be trusted.
    """
    seat = read_roles(models_dir).seats.get(role)
    if seat is None:
        msg = f"no model plays {role} in {models_dir / 'roles.json'}; run `make train` first"
        raise NotReady(msg)
    return load_package(models_dir / seat.package, seat.version, seat.digest)


def read_signature(models_dir: Path, role: Role) -> Signature | None:
    """Return the verified signature of the package that plays ``role``; None when there is none to trust."""
    seat = read_roles(models_dir).seats.get(role)
    if seat is None:
        return None
    try:
        return Signature.parse(json.loads(read_package(models_dir / seat.package, seat.digest)["signature.json"]))
    except PackageError:
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system drops it when the process ends, however it ends."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _line(move: Move) -> str:
    plain = {key: value for key, value in asdict(move).items() if key != "done"}
    return json.dumps({**plain, "at": move.at.isoformat()}, sort_keys=True)


def _parsed(line: str) -> dict[str, Any]:
    try:
        plain = dict(json.loads(line))
        _move(plain, done=False)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return plain


def _move(plain: dict[str, Any], done: bool) -> Move:
    before, after = (
        {role: Seat(**seat) if seat else None for role, seat in plain[side].items()} for side in ("before", "after")
    )
    at = parse_instant(plain["at"])
    grounds = plain.get("kind", "train"), plain.get("verdict")
    return Move(int(plain["revision"]), at, plain["by"], plain["reason"], before, after, done, *grounds)
