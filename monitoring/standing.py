"""Where a campaign stands by its own record, beside what its rows say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """What the record of a campaign adds to its evidence.

    Attributes:
        declared: digest of the criteria it opened under.
        changed: whether it is now to be judged by others, or at another maturity of labels.
        most_days: age in days of the clock beyond which it has expired; None once a verdict closed it.
    """

    declared: str
    changed: bool
    most_days: float | None
