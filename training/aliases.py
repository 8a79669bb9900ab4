"""The registry's aliases: a mirror of ``roles.json``, moved by compare-and-set.

MLflow's own call is last writer wins. Every move here is made by whoever holds the roles (``service.roles``), right
after looking where the alias points; what a kill left behind, or a registry that was away, the next training or
promotion puts right.
"""

from __future__ import annotations

import os

# Five waits of seconds by default, doubling to minutes: a training may as well end and be run again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests.exceptions import RequestException

from service.errors import UnderstudyError
from service.feature_store import project
from service.progress import Say
from service.roles import SEATS, Move, Role, Seat, locked, read_history, read_roles
from service.settings import Settings
from training.register import set_alias

Aliases = dict[Role, str | None]
# On versions that nobody ever played, so that they are told of once.
_UNSEATED = "understudy.unseated"
_LISTED = 10


class AliasMoved(UnderstudyError):
    """Somebody else moved an alias."""


class RegistryFailed(UnderstudyError):
    """MLflow did not do what it was asked to."""


@contextmanager
def told(settings: Settings) -> Iterator[None]:
    """Name MLflow, and what to do, in what MLflow raises.

    Raises:
        RegistryFailed: in place of MLflow's and the network's own errors.
    """
    try:
        yield
    except (MlflowException, RequestException, ConnectionError) as error:
        where = settings.tracking_uri or f"the SQLite store in {settings.state_dir}"
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        msg = f"MLflow at {where} failed ({text}); see that it runs (setting tracking_uri), then promote or train again"
        raise RegistryFailed(msg) from error


def read_aliases(client: MlflowClient) -> Aliases:
    """Return the version each role's alias points to, None where there is no alias."""
    found: Mapping[Role, str] = {}
    if client.search_registered_models(f"name = '{project()}'"):
        found = client.get_registered_model(project()).aliases
    return {**dict.fromkeys(SEATS), **{role: str(found[role]) for role in found}}


def require_alias(client: MlflowClient, role: Role, expected: str | None) -> None:
    """Look where an alias points.

    Raises:
        AliasMoved: when it points elsewhere than to ``expected`` (None: no alias).
    """
    now = read_aliases(client).get(role)
    if now != expected:
        msg = (
            f"alias {role} points to {_version(now)}, not {_version(expected)}: someone moved it; put it back "
            f"or see who else trains into this registry, then retry"
        )
        raise AliasMoved(msg)


def move_alias(client: MlflowClient, role: Role, expected: str | None, version: str) -> None:
    """Point a role's alias at a version if it still points to ``expected``; the caller holds the roles.

    Raises:
        AliasMoved: when it points elsewhere; it was left alone.
    """
    require_alias(client, role, expected)
    set_alias(client, role, version)


def align(client: MlflowClient, models_dir: Path, say: Say) -> Aliases:
    """Bring aliases that lag behind ``roles.json`` up to it, tell of versions nobody plays, return the aliases.

    A kill leaves either, and a registry that was away while roles moved. An alias lags when it points to what its role
    played before, or to nothing.

    Raises:
        AliasMoved: when an alias points to a version its role never played.
    """
    if not models_dir.exists():
        return read_aliases(client)
    with locked(models_dir / ".roles.lock"):
        roles, history, aliases = read_roles(models_dir), read_history(models_dir), read_aliases(client)
        for move in history[-1:]:
            if not move.done:
                say(f"the move to revision {move.revision} ({move.reason}) was cut short and counts for nothing")
        played = (role for move in history for role in (*move.before, *move.after))
        for role in dict.fromkeys((*SEATS, *roles.seats, *played)):
            aliases[role] = _align(client, role, roles.seats.get(role), aliases.get(role), history, say)
        _tell_unseated(client, [*roles.seats.values()], history, say)
    return aliases


def _align(
    client: MlflowClient,
    role: Role,
    seat: Seat | None,
    alias: str | None,
    history: list[Move],
    say: Say,
) -> str | None:
    played = {found.version for move in history for found in (move.before.get(role), move.after.get(role)) if found}
    wanted = seat.version if seat else None
    if alias == wanted:
        return alias
    if alias is not None and played and alias not in played:
        msg = (
            f"alias {role} points to {_version(alias)}, which never played {role}; roles.json seats "
            f"{_version(wanted)}: someone moved it in MLflow; put it back there, then run this again"
        )
        raise AliasMoved(msg)
    if wanted is None:
        # Nothing is known of a registry that is older than the models folder.
        if alias not in played:
            return alias
        client.delete_registered_model_alias(project(), role)
    elif not _registered(client, wanted):
        say(f"{_version(wanted)} plays {role} but is not in this registry; its alias stays at {_version(alias)}")
        return alias
    else:
        set_alias(client, role, wanted)
    say(f"repaired: alias {role} pointed to {_version(alias)}, now {_version(wanted)} as in roles.json")
    return wanted


def _tell_unseated(client: MlflowClient, seats: list[Seat], history: list[Move], say: Say) -> None:
    known = {seat.version for seat in seats}
    known |= {seat.version for move in history if move.done for seat in move.after.values() if seat}
    known |= {seat.version for move in history for seat in move.before.values() if seat}
    left = [
        version
        for version in client.search_model_versions(f"name = '{project()}'")
        if str(version.version) not in known and _UNSEATED not in version.tags
    ]
    if left:
        names = ", ".join(sorted((str(version.version) for version in left), key=int)[-_LISTED:])
        say(f"registered by a training that did not end, played by nobody: version {names}; they stay, without alias")
    for version in left:
        client.set_model_version_tag(project(), str(version.version), _UNSEATED, "true")


def _registered(client: MlflowClient, version: str) -> bool:
    # MLflow numbers its versions; a package seated by hand may be called anything.
    query = f"name = '{project()}' and version_number = {version}"
    return version.isdecimal() and bool(client.search_model_versions(query))


def _version(version: str | None) -> str:
    return f"version {version}" if version else "nothing"
