"""Values already read from the online store, good for as long as the store says that nothing changed in it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# About a kilobyte each; a store of more keys than this that never changes is read again from the start.
_MOST = 50_000


@dataclass(frozen=True)
class Stored:
    """What the online store holds for one row.

    Attributes:
        values: per view its feature values; a view without an entry was not found.
        event_times: per view the event time of those values, UTC, or None.
    """

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    event_times: Mapping[str, datetime | None] = field(default_factory=dict)


Content = tuple[datetime | None, Mapping[str, Any] | None]
Place = tuple[str, tuple[Any, ...]]


class Kept:
    """What was read at one revision of the store, by view and key. Not for several threads.

    Nothing here is older than the store: whoever asks names the revision the store has now, and another one than
    before empties it.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._revision: Hashable = None
        self._found: dict[Place, Content] = {}

    def get(self, revision: Hashable, places: list[Place]) -> Stored | None:
        """Return what all these places hold at this revision; None when one of them was not read yet."""
        if revision != self._revision:
            self._revision = revision
            self._found = {}
            return None
        values: dict[str, Mapping[str, Any]] = {}
        times: dict[str, datetime | None] = {}
        for place in places:
            content = self._found.get(place)
            if content is None:
                return None
            times[place[0]], found = content
            if found is not None:
                values[place[0]] = found
        return Stored(values, times)

    def put(self, revision: Hashable, places: list[Place], stored: Stored) -> None:
        """Keep what was read after ``revision`` was asked for; left out when the store has changed since."""
        if revision != self._revision:
            return
        if len(self._found) > self._most:
            self._found = {}
        for place in places:
            view = place[0]
            self._found[place] = stored.event_times.get(view), stored.values.get(view)
