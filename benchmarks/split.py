"""Does a split's verdict keep its word? Simulated splits through the real inference: ``python -m benchmarks.split``.

- A/A: treatment does nothing; looked at after every 500 units, once with single requests as units, once with keys that
  differ from each other and come back daily. How often is a gain, a harm, or an interval without zero ever shown?
- The same while the share is ramped 1, 5, 25, 50 % and the outcome drifts from day to day, where pooled means are
  wrong (Simpson's paradox), and where requests are taken for units though keys stick to their arm.
- Sample ratio: 2 % of one arm's requests lost; found after how many? And never lost: how many false alarms?
- Power: units after which 80 % of splits show a true effect.

Everything but the power of requests goes through frames as the log gives them. The last line of stdout is one JSON
object; the exit code is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from monitoring.sequential import sample_ratio_log_e
from monitoring.split_game import Toss, effect, log_wealth
from monitoring.split_units import Question, draws
from monitoring.statistics import Floats, Ints
from service.split import arm_of, draw

SPLITS, LOOK, UNITS = 1000, 500, 20_000
PROMOTES, ALARM = math.log(20.0), math.log(100.0)
RAMP = ((0.01, 3), (0.05, 3), (0.25, 4), (0.5, 10))
START = datetime(2024, 3, 4, tzinfo=UTC)
EFFECT = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the findings and the JSON line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.split", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=SPLITS, help="simulated splits each")
    n = parser.parse_args(arguments).splits
    started = time.perf_counter()
    result = {"splits": n, "look_every": LOOK, **alike(n), **ramped(n), **sticky(max(1, n // 2)), **lost(n), **power(n)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result))
    return 0 if within(result) else 1


def within(result: dict[str, Any]) -> bool:
    """Whether every limit is met: 5 % of wrong gains and harms, all losses found, 1 % of false alarms."""
    wrong = (
        "aa_wrong_gain",
        "aa_wrong_harm",
        "ramp_wrong_gain",
        "ramp_wrong_harm",
        "keys_wrong_gain",
        "keys_wrong_harm",
    )
    return bool(
        all(result[name] <= 0.05 for name in wrong)
        and max(result["aa_interval_misses"], result["ramp_interval_misses"], result["keys_interval_misses"]) <= 0.05
        and result["srm_found"] >= 0.99
        and result["srm_false_alarms"] <= 0.01
    )


def alike(splits: int) -> dict[str, Any]:
    """A/A at 50 %: a rare yes or no, and amounts with a heavy tail."""
    found = []
    for seed in progress(range(splits), "A/A"):
        rng = np.random.default_rng(seed)
        y = (rng.random(UNITS) < 0.15).astype(float) if seed % 2 else rng.lognormal(0, 1.5, UNITS)
        found.append(_looks(Toss(rng.random(UNITS) < 0.5, np.full(UNITS, 0.5), y)))
    return _report("aa", found, f"A/A, {splits} splits, a look after every {LOOK} of {UNITS} requests")


def ramped(splits: int) -> dict[str, Any]:
    """A/A while the share is raised and the outcome rises from 10 to 40 %: a trend with the ramp."""
    found, pooled = [], []
    days = np.repeat(np.arange(20), UNITS // 20)
    share = np.repeat([s for s, length in RAMP for _ in range(length)], UNITS // 20)
    for seed in progress(range(splits), "A/A, ramp and trend"):
        rng = np.random.default_rng(100_000 + seed)
        y = (rng.random(UNITS) < (0.1 + 0.3 * days / 19 + rng.normal(0, 0.02, 20)[days]).clip(0, 1)).astype(float)
        treated = rng.random(UNITS) < share
        found.append(_looks(Toss(treated, share, y)))
        pooled.append(_apart(y[treated], y[~treated]))
    said = _report("ramp", found, f"A/A, ramp 1 to 50 % with a trend, {splits} splits")
    print(f"    means of the pooled arms, one look at the end: {np.mean(pooled):.1%} wrong")
    return {**said, "ramp_pooled_wrong": float(np.mean(pooled))}


def sticky(splits: int) -> dict[str, Any]:
    """A/A with keys that come back: through hash, frame and units, ramped; requests as units beside it."""
    found, rows_wrong = [], []
    asked = Question("label", "higher", timedelta(0), START + timedelta(days=60))
    for seed in progress(range(splits), "A/A, keys"):
        rows = _keyed(np.random.default_rng(200_000 + seed), f"aa-{seed}")
        units = draws(rows, asked, timedelta(days=2))
        y = units["value"].to_numpy(dtype=float)
        toss = Toss(units["treated"].to_numpy(dtype=bool), units["chance"].to_numpy(dtype=float), y)
        found.append(_looks(toss))
        last = rows[rows["split_share"] == 0.5]
        treated = last["arm"].eq("treatment").to_numpy()
        value = last["value"].to_numpy(dtype=float)
        rows_wrong.append(_apart(value[treated], value[~treated]))
    said = _report("keys", found, f"A/A, keys that differ and come back, ramped, {splits} splits")
    print(f"    requests taken for units, one look at the end: {np.mean(rows_wrong):.1%} wrong")
    return {**said, "keys_as_rows_wrong": float(np.mean(rows_wrong))}


def lost(splits: int) -> dict[str, Any]:
    """2 % of the treated requests are lost at 50 %; and none."""
    looks = np.arange(5000, 1_000_001, 5000)
    after: list[int | None] = []
    false = 0
    for seed in progress(range(splits), "sample ratio"):
        rng = np.random.default_rng(300_000 + seed)
        control = np.cumsum(rng.binomial(5000, 0.5, len(looks)))
        treated = np.arange(1, len(looks) + 1) * 5000 - control
        kept = np.cumsum(rng.binomial(np.diff(treated, prepend=0), 0.98))
        after.append(next((int(n) for n, c, t in zip(looks, control, kept, strict=True) if _srm(c, t) > ALARM), None))
        false += any(_srm(c, t) > ALARM for c, t in zip(control, treated, strict=True))
    known = sorted(n for n in after if n is not None)
    half, most = (known[min(len(known) - 1, math.ceil(q * len(after)) - 1)] if known else None for q in (0.5, 0.8))
    print(
        f"sample ratio, 2 % of one arm lost: {len(known)} of {splits} found within a million requests, half within "
        f"{half:,}, 80 % within {most:,}; false alarms without loss: {false} of {splits}"
    )
    return {"srm_found": len(known) / splits, "srm_requests_50": half, "srm_requests_80": most,
            "srm_false_alarms": false / splits}  # fmt: skip


def power(splits: int) -> dict[str, Any]:
    """A true effect of 0.05 standard deviations (a rate of 0.300 raised to 0.323), at 50 % and through the ramp."""
    n = 60_000
    out: dict[str, Any] = {}
    for name, share in (
        ("50", np.full(n, 0.5)),
        ("ramp", np.repeat([0.01, 0.05, 0.25, 0.5], [3000, 3000, 4000, n - 10_000])),
    ):
        after = []
        for seed in progress(range(splits), f"power, {name}"):
            rng = np.random.default_rng(400_000 + seed)
            treated = rng.random(n) < share
            y = (rng.random(n) < np.where(treated, 0.3 + EFFECT * math.sqrt(0.21), 0.3)).astype(float)
            wealth = log_wealth(Toss(treated, share, y))[LOOK - 1 :: LOOK]
            reached = np.flatnonzero(wealth >= PROMOTES)
            after.append((int(reached[0]) + 1) * LOOK if len(reached) else None)
        known = sorted(a for a in after if a is not None)
        needed = math.ceil(0.8 * splits)
        out[f"power_units_80_{name}"] = known[needed - 1] if len(known) >= needed else None
        print(f"power, effect {EFFECT} sd, {name}: 80 % shown after {out[f'power_units_80_{name}']} units")
    fixed = math.ceil(4 * (1.959964 + 0.841621) ** 2 / EFFECT**2)
    print(f"    a fixed sample (5 % two-sided, 80 %, one look) needs {fixed:,}")
    return {**out, "power_fixed_sample": fixed}


def progress(values: Iterable[int], what: str) -> Iterable[int]:
    """Show how far a loop is, on stderr."""
    return tqdm(values, desc=what, file=sys.stderr, mininterval=1.0, leave=False)


def _looks(toss: Toss) -> tuple[bool, bool, bool]:
    """Whether any look shows a gain, a harm, or an interval without zero."""
    at = np.arange(LOOK - 1, len(toss.outcome), LOOK)
    gain, harm = (log_wealth(toss, better=side)[at] for side in (1.0, -1.0))
    found = effect(toss)
    with np.errstate(invalid="ignore"):
        missed = (found.low[at] > 0) | (found.high[at] < 0)
    return bool((gain >= PROMOTES).any()), bool((harm >= PROMOTES).any()), bool(missed.any())


def _report(name: str, found: Sequence[tuple[bool, bool, bool]], what: str) -> dict[str, Any]:
    gain, harm, missed = (float(np.mean([f[i] for f in found])) for i in range(3))
    print(f"{what}: wrong gains {gain:.1%}, wrong harms {harm:.1%}, intervals that ever missed 0 {missed:.1%}")
    return {f"{name}_wrong_gain": gain, f"{name}_wrong_harm": harm, f"{name}_interval_misses": missed}


def _apart(a: Floats, b: Floats) -> bool:
    """Whether a z-test calls two means different at 5 %."""
    return bool(abs(a.mean() - b.mean()) > 1.96 * math.sqrt(a.var() / len(a) + b.var() / len(b)))


def _srm(control: int, treated: int) -> float:
    return sample_ratio_log_e([int(control), int(treated)], [0.5, 0.5])


def _keyed(rng: np.random.Generator, name: str) -> pd.DataFrame:
    """A log of 3,000 keys, each with a rate of its own, asking a few times over the ramp's twenty days."""
    keys, n = 3000, 20_000
    rate = rng.beta(1, 3, keys)
    number = np.array([draw(name, f"k{i}") for i in range(keys)], dtype=object)
    key: Ints = rng.integers(0, keys, n)
    day = np.sort(rng.random(n) * 20)
    ends = np.cumsum([length for _, length in RAMP])
    revision = np.searchsorted(ends, day, side="right")
    share = np.array([s for s, _ in RAMP])[revision]
    return pd.DataFrame(
        {
            "request_id": np.arange(n).astype(str),
            "at": pd.to_datetime(START) + pd.to_timedelta(day, unit="D"),
            "split_unit": [f"{number[k]:016x}" for k in key],
            "split_share": share,
            "split_revision": revision + 1,
            "arm": [arm_of(number[k], s) for k, s in zip(key, share, strict=True)],
            "value": (rng.random(n) < rate[key]).astype(float),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
