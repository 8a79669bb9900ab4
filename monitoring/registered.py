"""Finds the package of a registered version: among those that ever had a role, else by what the registry says of it."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from datetime import datetime

from service.clock import parse_instant
from service.errors import DataError, PackageError
from service.feature_store import project
from service.package import PackagedModel, load_package, read_package
from service.roles import Seat, read_history, read_roles
from service.settings import Settings

_TAG = "package.digest"


@dataclass(frozen=True)
class Registered:
    """A registered model, verified and loaded.

    Attributes:
        as_of: the moment its training stood at: it saw nothing that became known later.
    """

    seat: Seat
    model: PackagedModel
    as_of: datetime


def registered(settings: Settings, version: str) -> Registered:
    """Find, verify and load a version's package.

    Raises:
        DataError: when no such version is known, or its record does not say what it was trained on.
        PackageError: when its package is missing or cannot be trusted.
    """
    seat = seats(settings).get(version) or _from_registry(settings, version)
    folder = settings.models_dir / seat.package
    if not folder.is_dir():
        msg = (
            f"the package of version {version}, {folder}, is gone; restore it from its run in MLflow "
            "(artifact `package`), or train again"
        )
        raise PackageError(msg)
    model = load_package(folder, version, seat.digest)
    record = json.loads(read_package(folder, seat.digest)["record.json"])
    try:
        as_of = parse_instant(record["as_of"])
    except (KeyError, TypeError, ValueError):
        msg = (
            f"version {version}'s record.json names no `as_of`, so rows it was trained on cannot be told from others; "
            "train it with `make train`"
        )
        raise DataError(msg) from None
    return Registered(seat, model, as_of)


def seats(settings: Settings) -> dict[str, Seat]:
    """Every version that has or had a role, by version; the newest package where two had the same."""
    found: dict[str, Seat] = {}
    for move in read_history(settings.models_dir):
        for seats_then in (move.before, move.after):
            found.update({seat.version: seat for seat in seats_then.values() if seat is not None})
    found.update({seat.version: seat for seat in read_roles(settings.models_dir).seats.values()})
    return found


def _from_registry(settings: Settings, version: str) -> Seat:
    """Ask MLflow (3 s to import, so only for a version that never had a role)."""
    digest = None
    if settings.tracking_uri or (settings.state_dir / "mlflow.db").exists():
        digest = _digest_of(settings, version)
    if digest is None:
        known = ", ".join(sorted(seats(settings), key=lambda v: (len(v), v))) or "none"
        msg = (
            f"version {version!r} is not registered (with a role are or were: {known}); "
            "name one with `make rehearse VERSION=n`, or train it"
        )
        raise DataError(msg)
    return Seat(version, digest, f"packages/{digest[:16]}")


def _digest_of(settings: Settings, version: str) -> str | None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow 3.17 with sqlalchemy 2.1 raises deprecations
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from requests.exceptions import RequestException

        uri = settings.tracking_uri or f"sqlite:///{settings.state_dir.resolve() / 'mlflow.db'}"
        try:
            tags = MlflowClient(tracking_uri=uri, registry_uri=uri).get_model_version(project(), version).tags
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            msg = f"the registry at {uri.partition('@')[2] or uri} failed ({str(error)[:200]}); see that it runs"
            raise DataError(msg) from None
        except (RequestException, ConnectionError) as error:
            msg = f"the registry at {uri.partition('@')[2] or uri} cannot be asked ({type(error).__name__})"
            raise DataError(msg) from None
    digest: str | None = tags.get(_TAG)
    return digest
