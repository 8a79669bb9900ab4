"""Whether treatment does anything, from the coins that were really tossed. Pure.

Every unit was put into its arm by a draw whose chance is known. If treatment changes no unit's outcome, outcomes are
what they are and only the draws are random: betting on "the treated one is the better one" is then a fair game, to
the last digit, for outcomes of any shape, dependence and trend. A unit with outcome ``y``, guessed beforehand as
``m``, pays ``exp(b (a - p)(y - m)) / E``, where ``a`` is 1 for the treated, ``p`` the chance of that, ``b`` the bet
and ``E`` what the draw makes of the numerator on average. Nothing is approximated; a unit's outcome must only not
have been looked at before, so each unit plays once. The wealth is fair under "no unit is changed", and a
supermartingale under "no unit is made better" (the pay-off of the treated grows with ``y``, that of the others
falls), so 20 is reached with a chance of at most 5 % at whatever moments one looks (Ville 1939).

Sources: Fisher, The Design of Experiments (1935) for the null of no effect on anybody; Ramdas, Grünwald, Vovk and
Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 2023; Ham, Bojinov, Lindon
and Tingley, "Design-based confidence sequences" (2022) for inference from the assignment alone.

The interval is for the *average* effect, which may be zero while single units are changed. It is asymptotic: Waudby-
Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
Annals of Statistics 2024, for a sum of changing variance. Units count by ``p (1 - p)``, so that a stage in which one
in a hundred is treated weighs what it can tell, and a trend over stages of different shares fools nobody: within a
unit's term the share is a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from monitoring.statistics import Floats

Bools = npt.NDArray[np.bool_]

# Effects bet on, in standard deviations of a unit's outcome; the stake is spread evenly.
EFFECTS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
# An outcome is guessed from the units before it: from so many of them, and not before there are a few.
_MEMORY, _FIRST = 2000, 20
# Further from the guess, in standard deviations, an outcome counts as this far: one unit must not take the stake.
_FAR = 8.0
# Where the interval is tightest, in units drawn at 50 %; and before how many of an arm there is none.
_TUNED, _LEAST = 5000.0, 30


@dataclass(frozen=True)
class Toss:
    """Units in the order they were looked at.

    Attributes:
        treated: where each fell.
        chance: of being treated, as it stood when the unit was drawn; between 0 and 1, neither included.
        outcome: what is compared.
    """

    treated: Bools
    chance: Floats
    outcome: Floats

    def of(self, rows: Bools | slice) -> Toss:
        """Some of the units."""
        return Toss(self.treated[rows], self.chance[rows], self.outcome[rows])


def log_wealth(toss: Toss, *, better: float = 1.0) -> Floats:
    """Log e-value after each unit against "treatment makes no unit's outcome larger" (smaller, for ``better=-1``)."""
    surprise, scale = _surprise(toss)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = better * np.clip(np.where(scale > 0, surprise / scale, 0.0), -_FAR, _FAR)
    p = toss.chance
    paths = []
    for bet in EFFECTS:
        z = bet * x
        fair = np.logaddexp(np.log(p) + (1 - p) * z, np.log1p(-p) - p * z)
        paths.append(np.cumsum(np.where(toss.treated, 1 - p, -p) * z - fair))
    return np.asarray(logsumexp(paths, axis=0) - math.log(len(EFFECTS)), dtype=np.float64)


def two_sided(toss: Toss) -> float:
    """Log e-value so far against "treatment changes nothing"; 0 without units."""
    if not len(toss.outcome):
        return 0.0
    more, less = (float(log_wealth(toss, better=side)[-1]) for side in (1.0, -1.0))
    return float(np.logaddexp(more, less)) - math.log(2)


@dataclass(frozen=True)
class Effect:
    """Treatment minus control after each unit, with an interval that holds at all times at once (NaN: none yet)."""

    value: Floats
    low: Floats
    high: Floats


def effect(toss: Toss, confidence: float = 0.95) -> Effect:
    """The average effect on a unit so far, each unit weighing ``p (1 - p)``."""
    surprise, _ = _surprise(toss)
    weight = toss.chance * (1 - toss.chance)
    x = (toss.treated - toss.chance) * surprise
    total, mass = np.cumsum(x), np.cumsum(weight)
    value = total / mass
    spread = np.cumsum(x**2) - 2 * value * np.cumsum(weight * x) + value**2 * np.cumsum(weight**2)
    alpha = 1 - confidence
    least = -2 * math.log(alpha)
    rho = (least + math.log(least) + 1) / _TUNED
    units = 4 * mass
    with np.errstate(invalid="ignore"):
        far = np.sqrt(np.maximum(spread, 0) / units * (units * rho + 1) / rho * np.log((units * rho + 1) / alpha**2))
    far /= mass
    few = np.minimum(np.cumsum(toss.treated), np.cumsum(~toss.treated)) < _LEAST
    far[few] = np.nan
    return Effect(value, value - far, value + far)


def _surprise(toss: Toss) -> tuple[Floats, Floats]:
    """How far each outcome is from the mean of those before it, and their standard deviation (0 while unknown)."""
    y = toss.outcome
    before = np.arange(len(y))
    since = np.maximum(before - _MEMORY, 0)
    # Sums of numbers far from zero would lose the digits the variance needs.
    centre = float(y[: min(len(y), _MEMORY)].mean()) if len(y) else 0.0
    first, second = (np.concatenate(([0.0], np.cumsum((y - centre) ** power))) for power in (1, 2))
    n = np.maximum(before - since, 1)
    mean = (first[before] - first[since]) / n
    variance = (second[before] - second[since]) / n - mean**2
    scale = np.sqrt(np.where((before >= _FIRST) & (variance > 1e-12), variance, 0.0))
    return np.asarray(y - centre - mean, dtype=np.float64), np.asarray(scale, dtype=np.float64)
