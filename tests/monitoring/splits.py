"""Logs and histories of made-up splits, drawn by the service's own draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.split_evidence import SplitEvidence
from monitoring.split_job import gather
from service.split import Assigned, Split, assigned
from service.split_file import move_split, read_split
from tests.monitoring.logs import Logs, contract, label_line, prediction_line

OPENED = datetime(2013, 10, 1, tzinfo=UTC)
CONTROL, TREATMENT = ("1", "a" * 64), ("2", "b" * 64)
SPLIT = Split("1-2", "shadow", "tailnum", 0.01, CONTROL[1], TREATMENT[1], "label", "lower", 86400.0, OPENED)
VECTOR = {spec.name: None for spec in contract().fields}

Outcome = Callable[[np.random.Generator, float, bool], float]
Spoil = Callable[[np.random.Generator, dict[str, Any]], dict[str, Any] | None]


@dataclass
class World:
    """Where a split's files are, and until when it has run."""

    folder: Path
    now: datetime

    @property
    def models(self) -> Path:
        """Folder of the split's file and history."""
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.folder / "logs"

    def gathered(self, **more: Any) -> SplitEvidence:
        """What the job gathers; everything is mature."""
        return gather(
            self.logs, self.models, contract(), self.now + timedelta(days=3), **{"maturity": timedelta(days=1), **more}
        )


def rate(base: float, effect: float = 0.0) -> Outcome:
    """A yes or no, by so much more or less likely for the treated."""
    return lambda rng, _, treated: float(rng.random() < base + effect * treated)


def make_split(
    folder: Path,
    stages: Sequence[tuple[float, int]] = ((0.5, 10),),
    *,
    outcome: Outcome | None = None,
    per_day: int = 300,
    keys: int = 100_000,
    split: Split = SPLIT,
    spoil: Spoil = lambda _, line: line,
    delay: timedelta = timedelta(hours=8),
    seed: int = 7,
) -> World:
    """Run a split: shares with days, so many requests a day of so many keys.

    Args:
        outcome: label of a request, from the time passed (0 to 1) and whether it is treated.
        spoil: changes a line of the prediction log, or loses it.
    """
    rng, logs, at = np.random.default_rng(seed), Logs(), OPENED
    (folder / "models").mkdir(parents=True, exist_ok=True)
    outcome = outcome or rate(0.3)
    total = sum(days for _, days in stages) * per_day
    for share, days in stages:
        state = move_split(
            folder / "models", read_split(folder / "models").revision, replace(split, share=share), at=at
        )
        assert state.split is not None
        for _ in range(days * per_day):
            number = len(logs.labels)
            request = {"tailnum": f"N{rng.integers(keys)}"}
            drawn = assigned(state.split, f"r{number}", request)
            assert drawn is not None
            line = _line(rng, f"r{number}", at, request, drawn)
            label = outcome(rng, number / total, drawn.arm == "treatment")
            logs.labels.append(label_line(f"r{number}", label, at + delay))
            kept = spoil(rng, line)
            if kept is not None:
                logs.predictions.append(kept)
            at += timedelta(days=1) / per_day
    logs.write(folder / "logs")
    return World(folder, at)


def _line(
    rng: np.random.Generator, name: str, at: datetime, request: dict[str, Any], drawn: Assigned
) -> dict[str, Any]:
    treated = drawn.arm == "treatment"
    version, digest = TREATMENT if treated else CONTROL
    line = prediction_line(name, at, {**VECTOR, "origin": "EWR", "carrier": "UA"}, 0.3)
    line["request"] |= request
    line |= {"role": "shadow" if treated else "primary", "model_version": version, "model_digest": digest}
    line |= {"arm": drawn.arm, "split": drawn.split.name, "split_revision": drawn.split.revision}
    line |= {"split_share": drawn.split.share, "split_unit": drawn.unit, "shadow_sampled": False}
    line["stages_ms"] = {"total": float(rng.gamma(9, 0.5))}
    return line
