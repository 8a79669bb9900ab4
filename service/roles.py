"""Which package plays which role: ``models/roles.json``, moved only by compare-and-set."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from service.errors import NotReady, PackageError, UnderstudyError
from service.package import PackagedModel, Signature, load_package, read_package

Role = Literal["primary", "fallback", "shadow"]
ROLES: tuple[Role, ...] = ("primary", "fallback", "shadow")


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


def move_roles(models_dir: Path, expected: int, moves: Mapping[Role, Seat | None]) -> Roles:
    """Seat packages in roles (None empties one) if the revision is still ``expected``.

    Raises:
        RolesMoved: when the revision is another one; nothing was changed.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / ".roles.lock"):
        current = read_roles(models_dir)
        if current.revision != expected:
            msg = f"roles are at revision {current.revision}, not {expected}: someone moved them; look again and retry"
            raise RolesMoved(msg)
        seats = {**current.seats, **moves}
        updated = Roles(expected + 1, {role: seat for role, seat in seats.items() if seat is not None})
        plain = {"revision": updated.revision, "roles": {role: asdict(seat) for role, seat in updated.seats.items()}}
        temporary = models_dir / "roles.json.next"
        temporary.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
        temporary.replace(models_dir / "roles.json")
    return updated


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
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
