"""Simulated campaigns: as frames for the whole comparison, and as units for its sequential core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from monitoring.pairing import Notes, Paired
from monitoring.statistics import Floats, Ints
from service.contract import Contract, FieldSpec

START = pd.Timestamp("2024-03-04", tz="UTC")
REGIONS, KINDS = 6, 8
PRIMARY, SHADOW = "a" * 64, "b" * 64

CONTRACT = Contract(
    name="simulated",
    keys=(),
    inputs=(),
    views=(),
    on_demand=(),
    fields=(
        FieldSpec("region", "str", categorical=True),
        FieldSpec("kind", "str", categorical=True),
        FieldSpec("load", "float"),
    ),
    positive="the event happened",
    slices=("region", "kind"),
)


@dataclass
class World:
    """What is true of every request of a campaign, and both models' log-odds; changed in place by a plant."""

    rng: np.random.Generator
    day: Ints
    region: Ints
    kind: Ints
    load: Floats
    effect: Floats
    odds: Floats
    label: Floats
    primary: Floats
    shadow: Floats
    shadow_ms: Floats
    lost: dict[str, Ints]

    @property
    def progress(self) -> Floats:
        """Where in the campaign each row lies, 0 to 1."""
        return np.asarray(self.day / max(1, self.day.max()), dtype=np.float64)


def sigmoid(x: Floats) -> Floats:
    """Logistic function."""
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float64)


def world(
    seed: int, *, days: int = 21, per_day: int = 400, primary_noise: float = 0.8, shadow_noise: float = 0.8
) -> World:
    """Draw a campaign in which each model sees the true log-odds plus its own noise."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    effect = np.linspace(-1.4, 1.4, KINDS)
    region, kind, load = rng.integers(0, REGIONS, n), rng.integers(0, KINDS, n), rng.normal(0, 0.9, n)
    odds = -1.0 + effect[kind] + load
    return World(
        rng=rng,
        day=np.repeat(np.arange(days), per_day),
        region=region,
        kind=kind,
        load=load,
        effect=effect,
        odds=odds,
        label=(rng.random(n) < sigmoid(odds)).astype(np.float64),
        primary=odds + rng.normal(0, primary_noise, n),
        shadow=odds + rng.normal(0, shadow_noise, n),
        shadow_ms=rng.gamma(9, 0.3, n),
        lost={},
    )


def frame_of(made: World) -> Paired:
    """Lay a campaign out as the frame the logs are joined into."""
    n = len(made.label)
    each = np.bincount(made.day).max()
    at = START + pd.to_timedelta(made.day + (np.arange(n) % each) / each, unit="D")
    frame = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(n)],
            "at": at.as_unit("us"),
            "role": "primary",
            "model_version": "1",
            "model_digest": PRIMARY,
            "prediction": sigmoid(made.primary),
            "confidence": "normal",
            "fallback_reason": None,
            "shadow_sampled": True,
            "service_version": "0.1.0",
            "vector.region": np.char.add("r", made.region.astype(str)).astype(object),
            "vector.kind": np.char.add("k", made.kind.astype(str)).astype(object),
            "vector.load": made.load,
            "ms.primary": made.rng.gamma(9, 0.3, n),
            "shadow_outcome": "scored",
            "shadow_reason": None,
            "shadow_version": "2",
            "shadow_digest": SHADOW,
            "shadow_prediction": sigmoid(made.shadow),
            "shadow_ms": made.shadow_ms,
            "shadow_batch": 1,
            "label": made.label,
        }
    )
    frame["known_at"] = frame["at"] + timedelta(hours=6)
    for reason, rows in made.lost.items():
        frame.loc[rows, "shadow_outcome"] = "dropped"
        frame.loc[rows, "shadow_reason"] = reason
        frame.loc[rows, ["shadow_version", "shadow_digest"]] = None
        frame.loc[rows, ["shadow_prediction", "shadow_ms"]] = np.nan
    return Paired(frame, Notes())


Plant = Callable[[int], World]


def scrambled(seed: int) -> World:
    """The categories reach the shadow under other codes than it was trained with."""
    made = world(seed)
    codes = np.roll(np.arange(KINDS), 3)
    made.shadow += made.effect[codes[made.kind]] - made.effect[made.kind]
    return made


def invalid(seed: int) -> World:
    """A better model that answers NaN on 3 % of rows."""
    made = world(seed, shadow_noise=0.3)
    made.shadow[made.rng.random(len(made.shadow)) < 0.03] = np.nan
    return made


def slow(seed: int) -> World:
    """A better model that takes twice the time."""
    made = world(seed, shadow_noise=0.3)
    made.shadow_ms *= 2
    return made


def worse_on_one_slice(seed: int) -> World:
    """A better model everywhere but in one region, where it has it the wrong way round."""
    made = world(seed, primary_noise=1.1, shadow_noise=0.2)
    there = made.region == 3
    made.shadow[there] = -1.0 - 0.4 * (made.odds[there] + 1.0)
    return made


def hard_rows_dropped(seed: int) -> World:
    """A model no better than the primary that times out on the requests it would have got wrong."""
    made = world(seed)
    regret = np.abs(made.label - sigmoid(made.shadow)) - np.abs(made.label - sigmoid(made.primary))
    worst = np.argsort(-regret)[: int(0.045 * len(regret))]
    made.lost["queue_full"] = worst
    return made


def overconfident(seed: int) -> World:
    """A model that ranks better and is much too sure."""
    made = world(seed, shadow_noise=0.4)
    made.shadow = 2.5 * (made.shadow + 1.0) - 1.0
    return made


def leaked(seed: int) -> World:
    """A model that knows labels of the past by heart: brilliant at first, then worse than the primary."""
    made = world(seed)
    known = np.clip(1 - 2.2 * made.progress, 0, 1)
    made.shadow += 1.2 * known * (2 * made.label - 1) + (1 - known) * made.rng.normal(0, 0.6, len(known))
    return made


def good(seed: int) -> World:
    """A better model."""
    return world(seed, shadow_noise=0.3)


def borderline(seed: int, *, days: int, per_day: int) -> World:
    """A model that decides 5 % of requests otherwise, rightly in three of five, and is the primary on the rest."""
    made = world(seed, days=days, per_day=per_day, primary_noise=0.0)
    made.shadow = made.primary.copy()
    rows = made.rng.random(len(made.label)) < 0.05
    right = np.where(made.rng.random(len(made.label)) < 0.6, made.label, 1 - made.label)
    made.shadow[rows] = 0.2 * (2 * right[rows] - 1)
    made.primary[rows] = -made.shadow[rows]
    return made


PLANTS: dict[str, tuple[Plant, str]] = {
    "scrambled categories": (scrambled, "auc_harm"),
    "NaN on 3 % of rows": (invalid, "invalid_outputs"),
    "twice the latency": (slow, "latency"),
    "better, but worse on one slice": (worse_on_one_slice, "slice_harm"),
    "better because hard rows were dropped": (hard_rows_dropped, "lost_rows_differ"),
    "overconfident": (overconfident, "overconfidence"),
    "trained on leaked labels, drifting": (leaked, "gain_fades"),
}
