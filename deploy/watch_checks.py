"""Judges a promoted model's first days: expectation and live facts in, checks with number and limit out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import betaln
from scipy.stats import beta, chi2

from deploy.watch_expected import Expected
from deploy.watch_facts import LATENCY_TIMES, Live

Outcome = Literal["pass", "fail", "no_data"]

LEAST_REQUESTS = 200
LEAST_SCORES = 500
LEAST_MINUTES = 5.0
# Evidence from which a rate is surely above its limit: reached by chance in at most 1 of 100 watches, however often
# one looks (Ville 1939).
SURE = 100.0
FAILURES_MARGIN, FALLBACKS_MARGIN = 0.01, 0.05
SLOW_SHARE = 0.05
LEAST_PSI, PSI_TIMES, MARGIN_TIMES, NOISE = 0.25, 2.0, 1.5, 0.9999
LOSS_MARGIN = 0.002
MOST_UNFAITHFUL = 0.05


@dataclass(frozen=True)
class WatchCheck:
    """One thing that is watched.

    Attributes:
        outcome: ``no_data`` says nothing and never takes a model back.
        critical: whether failing it takes the model back.
        value, limit: what was measured, and the most it may be.
        message: both in words, with what they rest on.
    """

    name: str
    outcome: Outcome
    critical: bool
    value: float | None
    limit: float | None
    message: str


def judge(before: Expected, now: Live) -> tuple[WatchCheck, ...]:
    """Hold what a model does against what was expected of it."""
    return (_failures(before, now), _latency(now), _scores(now), _loss(now), _fallbacks(before, now))


def rate_log_e(hits: int, rows: int, limit: float) -> float:
    """Log e-value of counts so far against "a row is a hit with a chance of at most ``limit``".

    Mixture of likelihood ratios over chances uniform above the limit; each is a fair game at the limit and an unfair
    one below it (Robbins, Annals of Mathematical Statistics 1970).
    """
    a, b = hits + 1.0, rows - hits + 1.0
    mixed = betaln(a, b) + beta.logsf(limit, a, b) - math.log1p(-limit)
    return float(mixed - hits * math.log(limit) - (rows - hits) * math.log1p(-limit))


def _failures(before: Expected, now: Live) -> WatchCheck:
    known = [rate for rate in (before.shadow_failures, before.replaced_failures) if rate is not None]
    limit = min(max(known, default=0.0) + FAILURES_MARGIN, 0.5)
    failed = sum(now.failures.values())
    share = failed / now.requests if now.requests else None
    said = f"the primary failed on {_percent(share)} of {now.requests:,} requests (at most {limit:.2%})"
    if now.failures:
        said += ": " + ", ".join(f"{n:,} {reason}" for reason, n in now.failures.items())
    outcome = _rate(failed, now.requests, limit, now.late_failures, now.late_requests, now.minutes)
    return WatchCheck("failures", outcome, True, share, limit, said + _few(outcome, now))


def _fallbacks(before: Expected, now: Live) -> WatchCheck:
    limit = min((before.replaced_fallbacks or 0.0) + FALLBACKS_MARGIN, 0.9)
    share = now.fallbacks / now.requests if now.requests else None
    said = f"{_percent(share)} of {now.requests:,} requests were not answered by the primary (at most {limit:.2%})"
    outcome = _rate(now.fallbacks, now.requests, limit, now.fallbacks, now.requests, now.minutes)
    return WatchCheck("fallbacks", outcome, False, share, limit, said + _few(outcome, now))


def _latency(now: Live) -> WatchCheck:
    limit = now.slow_ms
    if limit is None or now.p95 is None:
        missing = f"{now.calls:,} calls" if limit is not None else "no calls from before to compare with"
        return WatchCheck("latency", "no_data", True, now.p95, limit, f"p95 of a call cannot be said yet: {missing}")
    outcome = _rate(now.slow, now.calls, SLOW_SHARE, now.late_slow, now.late_calls, now.minutes)
    said = (
        f"p95 of {now.calls:,} calls is {now.p95:.2f} ms (at most {limit:.2f} ms: {LATENCY_TIMES:g} times the p95 from "
        f"before{_load(now)}); {now.slow / now.calls:.1%} are slower than that (at most {SLOW_SHARE:.0%})"
    )
    return WatchCheck("latency", outcome, True, now.p95, limit, said + _few(outcome, now))


def _scores(now: Live) -> WatchCheck:
    shift = now.shift
    if shift is None or min(shift.rows, shift.before) < LEAST_SCORES or now.minutes < LEAST_MINUTES:
        known = "no scores of both times" if shift is None else f"{shift.rows:,} live, {shift.before:,} as shadow"
        said = f"the scores' shift cannot be said yet: {known} at the same hours (at least {LEAST_SCORES} each)"
        return WatchCheck("scores", "no_data", True, None, None, said)
    # What chance alone gives: (1/n + 1/m) times a chi-square of bins - 1.
    noise = (1 / shift.rows + 1 / shift.before) * float(chi2.ppf(NOISE, 9))
    if shift.replaced is not None:
        # What moves both models' scores is the traffic, whatever the day is like.
        moved = max(PSI_TIMES, MARGIN_TIMES * shift.times) * shift.replaced
        why = f"the replaced model's moved by {shift.replaced:.3f} on the same requests"
    else:
        moved = PSI_TIMES * shift.days
        why = f"days as shadow differ by up to {shift.days:.3f}, the replaced model could not be asked"
    limit = max(LEAST_PSI, moved) + noise
    said = (
        f"PSI of {shift.rows:,} scores against {shift.before:,} as shadow is {shift.value:.3f} (at most {limit:.3f}: "
        f"{why})"
    )
    return WatchCheck("scores", "fail" if shift.value > limit else "pass", True, shift.value, limit, said)


def _loss(now: Live) -> WatchCheck:
    loss, name = now.loss, "loss"
    if now.unfaithful is not None and now.unfaithful > MOST_UNFAITHFUL:
        why = f"; {', '.join(now.redacted)} redacted from the log (UNDERSTUDY_REDACT)" if now.redacted else ""
        said = (
            f"{now.unfaithful:.1%} of logged vectors do not reproduce their answer (at most {MOST_UNFAITHFUL:.0%}{why})"
        )
        return WatchCheck(name, "no_data", True, None, LOSS_MARGIN, f"{said}: both models cannot be compared on them")
    if loss is None or loss.low is None or loss.high is None:
        known = f"{loss.rows:,} labels of {loss.days} whole days" if loss else f"{now.labelled:,} mature labels"
        said = f"the loss cannot be said yet: {known} (at least 5 whole days)"
        return WatchCheck(name, "no_data", True, loss.value if loss else None, LOSS_MARGIN, said)
    said = (
        f"log loss {loss.promoted:.4f}, the replaced model's would be {loss.replaced:.4f} on the same {loss.rows:,} "
        f"requests of {loss.days} days: {loss.value:+.4f} (surely above {loss.low:+.4f}, at most {LOSS_MARGIN:+.4f})"
    )
    return WatchCheck(name, "fail" if loss.low > LOSS_MARGIN else "pass", True, loss.low, LOSS_MARGIN, said)


def _rate(hits: int, rows: int, limit: float, late_hits: int, late_rows: int, minutes: float) -> Outcome:
    """Whether a rate is surely above its limit, and still is: what has passed is not undone by going back."""
    if rows < LEAST_REQUESTS or minutes < LEAST_MINUTES:
        return "no_data"
    lasts = late_rows > 0 and late_hits / late_rows > limit
    return "fail" if lasts and rate_log_e(hits, rows, limit) >= math.log(SURE) else "pass"


def _load(now: Live) -> str:
    return f", and the machine is {now.load:.1f} times as slow at lookups" if now.load > 1.05 else ""


def _few(outcome: Outcome, now: Live) -> str:
    if outcome != "no_data":
        return ""
    return (
        f"; too little to judge by ({now.requests:,} requests in {now.minutes:.0f} min, at least {LEAST_REQUESTS} in "
        f"{LEAST_MINUTES:g})"
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.2%}"
