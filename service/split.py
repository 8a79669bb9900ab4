"""Which requests another model answers while a split runs: pure functions of a request and the split.

A unit (the value of a request field, or the request itself) falls on a number that the split's name and the unit
alone decide; below the share it is treated. So every process agrees without asking, and raising the share keeps
everybody in treatment who is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

Arm = Literal["control", "treatment"]
Goal = Literal["higher", "lower"]

_BITS = 64


@dataclass(frozen=True)
class Split:
    """What is tried on whom, declared when the split opens; only ``share`` changes afterwards.

    Attributes:
        name: the campaign's; also what the draw is salted with, so that two splits draw independently.
        slot: the role whose model answers the treated.
        key: request field whose value is drawn, so that one value stays in one arm; empty: each request by itself.
        share: of units that are treated, 0 to 1.
        control, treatment: digests of the models it compares; it ends when either no longer plays.
        metric: what is compared downstream: ``label``, or a name for the values of a file.
        goal: whether more of it is better, or less.
        window_s: how long after a key's first request its further requests count, in seconds.
        opened: when its first share was set, by the clock.
        revision: of the file since when this share holds.
    """

    name: str
    slot: str
    key: str
    share: float
    control: str
    treatment: str
    metric: str
    goal: Goal
    window_s: float
    opened: datetime
    revision: int = 0

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "opened": self.opened.isoformat()}

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Split:
        """Read what :meth:`plain` wrote.

        Raises:
            ValueError, TypeError, KeyError: when it is something else.
        """
        split = cls(**{**plain, "opened": datetime.fromisoformat(plain["opened"])})
        texts = (split.name, split.slot, split.key, split.control, split.treatment, split.metric)
        if not all(isinstance(text, str) for text in texts) or not split.name or split.goal not in ("higher", "lower"):
            msg = "a name or goal is none"
            raise ValueError(msg)
        if not 0 < split.share <= 1 or not (math.isfinite(split.window_s) and split.window_s >= 0):
            msg = f"share={split.share} or window_s={split.window_s} is out of range"
            raise ValueError(msg)
        return split


@dataclass(frozen=True)
class Assigned:
    """Where one request falls.

    Attributes:
        unit: the drawn number as 16 hexadecimal digits; names the unit in the log without telling the key.
    """

    arm: Arm
    unit: str
    split: Split


def assigned(split: Split, request_id: str, request: Mapping[str, Any]) -> Assigned | None:
    """Draw a request's arm; None for one whose key is null: it has no unit and is no part of the split."""
    value = request.get(split.key) if split.key else request_id
    if value is None:
        return None
    number = draw(split.name, value)
    return Assigned(arm_of(number, split.share), f"{number:016x}", split)


def draw(name: str, value: Any) -> int:
    """Return the 64-bit number that BLAKE2b, keyed with the split's name, makes of a unit."""
    salt = blake2b(name.encode(errors="replace"), digest_size=32).digest()
    return int.from_bytes(blake2b(str(value).encode(errors="replace"), digest_size=8, key=salt).digest(), "big")


def arm_of(number: int, share: float) -> Arm:
    """Return the arm of a drawn number; whoever is treated at one share is treated at every larger one."""
    return "treatment" if number < share * 2.0**_BITS else "control"


def logged(drawn: Assigned | None) -> dict[str, Any]:
    """What the prediction record says of a request's place in a split; outside of one only that it has no arm."""
    if drawn is None:
        return {"arm": None}
    return {
        "arm": drawn.arm,
        "split": drawn.split.name,
        "split_revision": drawn.split.revision,
        "split_share": drawn.split.share,
        "split_unit": drawn.unit,
    }
