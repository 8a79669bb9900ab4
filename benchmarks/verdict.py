"""Does the verdict keep its word? Simulated campaigns through the real comparison: ``python -m benchmarks.verdict``.

- A/A campaigns (two equally good models), looked at after every 200 labels: how many wrongly promote. Through the
  test that every promotion must pass; the other conditions of a verdict can only hold more back. Once with days that
  are alike, then with days that favour one of the two at random, where a test on rows would be wrong.
- Power: the labels after which 80 % of the campaigns with a true gain of one point in accuracy and 5 % disagreement
  promote, when nothing but the decisions shows it.
- Planted bad shadows, and good ones, through evidence and verdict as `make compare` runs them.

``--scale`` instead times the whole command over 336,776 logged and labelled pairs. The last line of stdout is one
JSON object; the exit code is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.campaigns import CONTRACT, PLANTS, START, World, borderline, frame_of, good
from monitoring.compare import Options, compare
from monitoring.performance import gain_path
from monitoring.plan import Plan
from monitoring.sequential import Units, discordant_log_e
from monitoring.statistics import Floats, log_losses
from monitoring.units import mean_units
from monitoring.verdict import Verdict, decide

CAMPAIGNS, PEEKS, LABELS = 1000, 100, 200
LONGEST = 5850
LEAST_DAYS = 7
PROMOTES = 20.0
PLAN = Plan()
SEEDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the table and the JSON line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.verdict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS, help="simulated A/A and power campaigns each")
    parser.add_argument("--scale", action="store_true", help="time a verdict over 336,776 pairs instead")
    options = parser.parse_args(arguments)
    if options.scale:
        from benchmarks.verdict_scale import run

        return run()
    started = time.perf_counter()
    n = options.campaigns
    result = {**alike(n), **unlike(n), **skewed(n), **power(n), **planted()}
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result))
    return 0 if within(result) else 1


def within(result: dict[str, Any]) -> bool:
    """Whether every limit is met."""
    return bool(
        result["aa_wrong_promote"] <= 0.05 * result["aa_campaigns"]
        and all(share <= 0.05 for share in result["aa_day_effects_wrong_share"].values())
        and result["power_labels_80"] <= LONGEST
        and result["planted_refused"] == result["planted_total"] == result["planted_reason_right"]
        and result["good_promoted"] == result["good_total"]
    )


def alike(campaigns: int) -> dict[str, Any]:
    """A/A campaigns with days that are alike."""
    wrong = rows = 0
    for seed in progress(range(campaigns), "A/A, days alike"):
        decisions, loss, by_row = _aa(seed, 0.0)
        wrong += promotes(gain_path(decisions, loss, PLAN)) is not None
        rows += promotes(by_row) is not None
    print(
        f"A/A, {campaigns} campaigns, {PEEKS} looks after {LABELS} labels each: {wrong} wrong promotes; on rows {rows}"
    )
    return {"aa_campaigns": campaigns, "aa_wrong_promote": wrong, "aa_wrong_promote_row_level": rows}


def unlike(campaigns: int) -> dict[str, Any]:
    """A/A campaigns in which each day favours one of the two at random."""
    days, rows = {}, {}
    for spread in (0.1, 0.3, 1.0):
        found = [_aa(10_000 + seed, spread) for seed in progress(range(campaigns), f"A/A, days differ by {spread}")]
        days[str(spread)] = _share([promotes(gain_path(d, loss, PLAN)) for d, loss, _ in found])
        rows[str(spread)] = _share([promotes(by_row) for _, _, by_row in found])
        print(f"A/A, days differ by {spread}: wrong promotes {days[str(spread)]:.1%}; on rows {rows[str(spread)]:.1%}")
    return {"aa_day_effects_wrong_share": days, "aa_day_effects_wrong_share_row_level": rows}


def skewed(campaigns: int) -> dict[str, Any]:
    """No gain on average, but a little better on four days of five and much worse on the fifth: the known weakness.

    Reported, not limited: no rule that decides within weeks can know of days that have not come yet.
    """
    found = {}
    for tilt in (0.02, 0.04, 0.08):
        wrong = []
        for seed in progress(range(campaigns), f"no gain, bad days rare, tilt {tilt}"):
            rng = np.random.default_rng(30_000 + seed)
            right = 0.5 + tilt * np.where(rng.random(PEEKS) < 0.8, 1, -4)
            pairs = rng.binomial(LABELS, 0.05, PEEKS).astype(np.int64)
            sums = np.asarray(2.0 * rng.binomial(pairs, right) - pairs, dtype=np.float64)
            each = Units(sums, np.full(PEEKS, float(LABELS)), np.asarray(pairs - sums**2 / LABELS, dtype=np.float64))
            wrong.append(promotes(gain_path(each, _silent(PEEKS), PLAN)))
        found[str(tilt)] = _share(wrong)
        print(f"no gain, right in {0.5 + tilt:.0%} of discordant pairs on 4 days of 5, in {0.5 - 4 * tilt:.0%} on the "
              f"fifth: wrong promotes {found[str(tilt)]:.1%}")  # fmt: skip
    return {"skewed_days_wrong_share": found}


def power(campaigns: int) -> dict[str, Any]:
    """Campaigns with a true gain: 3 % of labels only the shadow decides rightly, 2 % only the primary."""
    found: dict[str, int | None] = {}
    rows: dict[str, int | None] = {}
    for per_day in (100, LABELS, 400, 800):
        ours, theirs = [], []
        for seed in progress(range(campaigns), f"power, {per_day} labels a day"):
            rng = np.random.default_rng(20_000 + seed)
            days = 12_000 // per_day
            gain = rng.choice([1.0, -1.0, 0.0], size=days * per_day, p=[0.03, 0.02, 0.95])
            decisions = mean_units(gain, np.repeat(np.arange(days), per_day))
            ours.append(promotes(gain_path(decisions, _silent(days), PLAN)))
            theirs.append(promotes(_by_row(gain, per_day)))
        found[str(per_day)], rows[str(per_day)] = _labels(ours, per_day), _labels(theirs, per_day)
        key = str(per_day)
        print(f"power, {per_day} labels a day: 80 % promoted after {found[key]} labels; on rows {rows[key]}")
    whole = [whole_verdict(seed) for seed in progress(range(max(1, campaigns // 20)), "power, whole verdict")]
    share = sum(whole) / len(whole)
    print(f"power, whole verdict, {len(whole)} campaigns: {share:.0%} promoted within {LONGEST} labels")
    return {
        "power_labels_80": found[str(LABELS)] or sys.maxsize,
        "power_labels_80_by_labels_a_day": found,
        "power_labels_80_row_level": rows,
        "power_whole_verdict_share": round(share, 3),
    }


def whole_verdict(seed: int) -> bool:
    """Whether evidence and verdict promote the true gain at one of the looks, one every third day."""
    days = LONGEST // LABELS
    made = borderline(seed, days=days, per_day=LABELS)
    frame = frame_of(made)
    for day in range(days, LEAST_DAYS - 1, -3):
        until = START + timedelta(days=day)
        seen = type(frame)(frame.frame[frame.frame["at"] < until], frame.notes)
        options = Options(now=(until + timedelta(hours=24)).to_pydatetime())
        if decide(compare(seen, CONTRACT, options)).decision == "promote":
            return True
    return False


def planted() -> dict[str, Any]:
    """Bad shadows, each refused for its own fault, and good ones."""
    refused = right = 0
    for name, (plant, expected) in PLANTS.items():
        for seed in range(SEEDS):
            verdict = _verdict(plant(seed))
            first = verdict.reasons[0]
            refused += verdict.decision != "promote"
            right += verdict.decision != "promote" and first.criterion == expected
        print(f"planted, {name}: {verdict.decision}\n    {first.message}")
    promoted = sum(_verdict(good(seed)).decision == "promote" for seed in range(SEEDS))
    print(f"planted, a better model: {promoted} of {SEEDS} promoted")
    return {
        "planted_total": len(PLANTS) * SEEDS,
        "planted_refused": refused,
        "planted_reason_right": right,
        "good_total": SEEDS,
        "good_promoted": promoted,
    }


def promotes(path: Floats) -> int | None:
    """The first day on which a look finds enough evidence, or None."""
    enough = np.flatnonzero(path[LEAST_DAYS - 1 :] >= np.log(PROMOTES))
    return int(enough[0]) + LEAST_DAYS if len(enough) else None


def progress(values: Iterable[int], what: str) -> Iterable[int]:
    """Show how far a loop is, on stderr."""
    return tqdm(values, desc=what, file=sys.stderr, mininterval=1.0, leave=False)


def _aa(seed: int, spread: float) -> tuple[Units, Units, Floats]:
    """Two equally good models, a look a day: decisions, log loss, and the log e-values of a test on rows."""
    rng = np.random.default_rng(seed)
    n = PEEKS * LABELS
    day = np.repeat(np.arange(PEEKS), LABELS)
    odds = rng.normal(-0.5, 1.5, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    # Each day each model is off by an amount of its own; noise and days are alike for both.
    scores = [1 / (1 + np.exp(-(odds + rng.normal(0, 0.2, n) + rng.normal(0, spread, PEEKS)[day]))) for _ in range(2)]
    right = [((s >= PLAN.threshold) == (label == 1)).astype(np.float64) for s in scores]
    gain = right[1] - right[0]
    loss = log_losses(label, scores[0]) - log_losses(label, scores[1])
    return mean_units(gain, day), mean_units(loss, day), _by_row(gain, LABELS)


def _by_row(gain: Floats, per_day: int) -> Floats:
    ends = np.arange(per_day, len(gain) + 1, per_day) - 1
    return discordant_log_e(np.cumsum(gain > 0)[ends].astype(np.float64), np.cumsum(gain < 0)[ends].astype(np.float64))


def _silent(days: int) -> Units:
    """Log losses that say nothing."""
    return Units(np.zeros(days), np.ones(days), np.zeros(days))


def _share(found: Sequence[int | None]) -> float:
    return sum(day is not None for day in found) / len(found)


def _labels(found: Sequence[int | None], per_day: int) -> int | None:
    """Labels after which 80 % of campaigns have promoted; None when fewer ever do."""
    days = sorted(day for day in found if day is not None)
    needed = int(np.ceil(0.8 * len(found)))
    return days[needed - 1] * per_day if len(days) >= needed else None


def _verdict(made: World) -> Verdict:
    return decide(compare(frame_of(made), CONTRACT))


if __name__ == "__main__":
    sys.exit(main())
