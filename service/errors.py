"""Every error this project raises on purpose.

UnderstudyError
├── BadRequest            4xx: the caller can fix it
│   ├── TooLarge          413
│   └── TooBusy           429
├── NotReady              the bundle is not set up; the message names the command that does it
├── ContractError         a feature definition contradicts itself
├── DataError             a table or file is damaged; the message names table, column and rows
├── StoreError            the online store cannot be read or written; the message names it and the fix
└── PackageError          a model package is missing, altered or of an unknown format
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UnderstudyError(Exception):
    """Base of all deliberate errors; the text is meant for a person."""


class BadRequest(UnderstudyError):
    """The request cannot be answered as sent.

    Attributes:
        status: HTTP status, 4xx.
        problems: one entry per field: ``field``, ``value`` (shortened), ``message``.
        headers: what the answer carries besides.
    """

    status = 422
    headers: Mapping[str, str] = {}

    def __init__(self, problems: list[dict[str, str]], status: int = 422) -> None:
        super().__init__("; ".join(p["message"] for p in problems))
        self.problems = problems
        self.status = status


class TooLarge(BadRequest):
    """The request body is over the limit."""

    def __init__(self, limit: int) -> None:
        message = f"body is larger than {limit} bytes (limit {limit}); send fewer rows per request"
        super().__init__([{"field": "body", "value": "", "message": message}], status=413)


class TooBusy(BadRequest):
    """More is being answered already than can be answered in time."""

    headers = {"Retry-After": "1"}

    def __init__(self, limit: int) -> None:
        message = f"{limit} requests are being answered (limit {limit}); try again in a second, or send fewer at once"
        super().__init__([{"field": "request", "value": "", "message": message}], status=429)


class NotReady(UnderstudyError):
    """Something must be made first; the message names the command."""


class ContractError(UnderstudyError):
    """A contract tag is malformed or contradicts the definition it stands on."""


class DataError(UnderstudyError):
    """Input data is damaged; nothing was changed."""


class StoreError(UnderstudyError):
    """The online store is not what it should be."""


class PackageError(UnderstudyError):
    """A model package cannot be trusted or read."""


def problem(field: str, value: Any, text: str) -> dict[str, str]:
    """Describe one wrong field: its name, its value (shortened), and a sentence with the fix."""
    shown = "" if value == "" else str(value)[:80]
    return {"field": field, "value": shown, "message": f"{field}={shown} {text}" if shown else f"{field} {text}"}
