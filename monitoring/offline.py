"""What a rehearsal on logged vectors is about; evidence that carries it never promotes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Rehearsal:
    """How evidence came from the log instead of from live requests.

    Attributes:
        version, digest: the model that was asked afterwards.
        trained_as_of: it saw nothing that became known later.
        start, end: the stretch of the log that was asked for; None where it was open.
        logged: predictions in that stretch.
        trained_on: of them made before ``trained_as_of``; left out, the model may know their labels.
        redacted: of the others with a value removed that the model takes; left out, it would be asked otherwise.
        replayed: predictions it was asked about.
        marks: of those, the ones with a null among the values it takes (``null``), a value older than its view
            allows (``stale``), or another value removed (``redacted``).
        already: scores kept from an earlier run.
        again: rows on which the primary was asked again.
        reproduced: of them answered with the score in the log, to nine digits.
    """

    version: str
    digest: str
    trained_as_of: datetime
    start: datetime | None
    end: datetime | None
    logged: int
    trained_on: int
    redacted: int
    replayed: int
    marks: dict[str, int]
    already: int
    again: int
    reproduced: int
