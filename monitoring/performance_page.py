"""What the monitoring page and its JSON say of performance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from markupsafe import Markup

from monitoring.labels import LabelNotes
from monitoring.maturity import Maturity
from monitoring.performance_plots import TITLES, pictures, shown
from monitoring.performance_run import SPANS, Slice, Stretch
from monitoring.performance_store import newest

_ROWS = 8


@dataclass(frozen=True)
class Told:
    """Performance as far as it is known.

    Attributes:
        stretches: every one measured so far.
        labels: how far labels have come; None when there was nothing to label.
        notes: what was found in the label log.
    """

    stretches: tuple[Stretch, ...] = ()
    slices: tuple[Slice, ...] = ()
    labels: Maturity | None = None
    notes: LabelNotes = field(default_factory=LabelNotes)

    @property
    def lately(self) -> Stretch | None:
        """The newest four weeks with an estimate or truth, or the longest there is."""
        for span in reversed(SPANS):
            for truth in (True, False):
                if found := newest(self.stretches, span, truth=truth):
                    return found
        return None

    @property
    def newest_window(self) -> Stretch | None:
        """The newest single window of the primary, with or without data."""
        own = [s for s in self.stretches if s.span == SPANS[0] and s.role == "primary"]
        return own[-1] if own else None

    @property
    def drifted(self) -> Stretch | None:
        """The newest window with truth, when truth has left the estimate for good."""
        known = [s for s in self.stretches if s.evidence is not None]
        last = max(known, key=lambda s: s.end, default=None)
        return last if last and last.drifted else None

    @property
    def rows(self) -> tuple[Stretch, ...]:
        """What the table shows, newest first."""
        return tuple(reversed(shown(self.stretches)[-_ROWS:]))

    @property
    def others(self) -> tuple[Stretch, ...]:
        """The newest stretches of the other roles that have truth."""
        found = {s.role: s for s in self.stretches if s.role != "primary" and s.realized and s.span == SPANS[-1]}
        return tuple(found.values())

    def remark(self, one: Stretch) -> str:
        """What is odd about a stretch; "" when nothing is."""
        parts = [one.estimated_reason, one.realized_reason]
        guess, truth = (values.get("auc") for values in (one.estimated, one.realized))
        if guess and truth and guess[1] is not None and guess[2] is not None and not guess[1] <= truth[0] <= guess[2]:
            parts.append(f"truth outside {guess[1]:.3f} to {guess[2]:.3f}")
        return "; ".join(part for part in parts if part)

    @property
    def plots(self) -> Mapping[str, Markup]:
        """The pictures by measure."""
        return pictures(self.stretches)

    @property
    def titles(self) -> Mapping[str, str]:
        """Measures in words."""
        return TITLES

    def as_json(self) -> dict[str, Any]:
        """Everything for machines; stretches without any data are left out."""
        labels = None
        if self.labels:
            labels = {name: value for name, value in vars(self.labels).items() if name != "days"}
            days = self.labels.days
            labels["days"] = days.assign(day=days["day"].dt.strftime("%Y-%m-%d")).to_dict("records")
        return {
            "stretches": [{**vars(s), "drifted": s.drifted} for s in self.stretches if s.realized or s.estimated],
            "slices": [asdict(one) for one in self.slices], "labels": labels, "label_log": asdict(self.notes),
        }  # fmt: skip
