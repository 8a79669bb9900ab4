"""Every Prometheus series the gateway exports; label values come from closed sets."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # carries no types
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_AGE_BUCKETS = (60, 300, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 259200, 604800, 2592000, 5184000)
_SCORE_BUCKETS = tuple(i / 10 for i in range(11))

REQUESTS = Counter("understudy_requests_total", "Requests by endpoint and HTTP status.", ["endpoint", "status"])
PREDICTIONS = Counter("understudy_predictions_total", "Answers by role and confidence.", ["role", "confidence"])
FALLBACKS = Counter("understudy_fallbacks_total", "Answers not given by the primary, by reason.", ["reason"])
VIOLATIONS = Counter("understudy_feature_violations_total", "Contract violations.", ["feature", "kind"])
STAGE = Histogram("understudy_stage_seconds", "Duration of a stage of a request.", ["stage"], buckets=_STAGE_BUCKETS)
AGE = Histogram("understudy_feature_age_seconds", "Age of a view's value when used.", ["view"], buckets=_AGE_BUCKETS)
DATA_AGE = Gauge(
    "understudy_feature_data_age_seconds",
    "Age of a view's newest stored value, by its event time; NaN while there is none.",
    ["view"],
    multiprocess_mode="livemax",
)
MAX_STALENESS = Gauge(
    "understudy_feature_max_staleness_seconds",
    "Age from which a view's values break their contract; a view without a limit has no series.",
    ["view"],
    multiprocess_mode="livemax",
)
CLOCK = Gauge(
    "understudy_clock_timestamp_seconds",
    "What the service takes for now, which in a replay is not the wall clock; 0 until it is known.",
    multiprocess_mode="livemax",
)
SCORE = Histogram("understudy_score", "Scores by role.", ["role"], buckets=_SCORE_BUCKETS)
# The role of the four is the shadow's slot, or `primary` where it is asked again for the noise floor.
SHADOW = Counter("understudy_shadow_total", "Sampled requests by what became of them.", ["role", "outcome", "reason"])
SHADOW_SAMPLED = Counter("understudy_shadow_sampled_total", "Requests a shadow was asked to rehearse.", ["role"])
SHADOW_SECONDS = Histogram(
    "understudy_shadow_seconds", "Duration of a call to a shadow.", ["role"], buckets=_STAGE_BUCKETS
)
SHADOW_QUEUE = Gauge("understudy_shadow_queue", "Requests waiting for a shadow.", ["role"], multiprocess_mode="livesum")
SPLIT = Counter("understudy_split_total", "Answers while a split runs, by arm and who gave them.", ["arm", "role"])
LOG_DROPS = Counter("understudy_log_dropped_total", "Records that could not be written, by log.", ["log"])
LABELS = Counter("understudy_labels_total", "Ground truths received.")
RUNNER_UP = Gauge(
    "understudy_runner_up", "Whether a role's runner is there and has a model.", ["role"], multiprocess_mode="livemin"
)
MODEL_INFO = Gauge(
    "understudy_model_info",
    "The model that plays a role (1); 0 for one that it played before.",
    ["role", "version", "digest"],
    multiprocess_mode="livemax",
)
RUNNER_KILLS = Counter("understudy_runner_kills_total", "Runners killed because they stayed silent.", ["role"])
BREAKER = Gauge(
    "understudy_breaker_state",
    "Circuit breaker of a role in one worker: 0 closed, 1 half-open, 2 open, 3 forced open, 4 disabled.",
    ["role"],
    multiprocess_mode="liveall",
)
BREAKER_CHANGES = Counter(
    "understudy_breaker_changes_total", "Changes of a circuit breaker's state.", ["role", "state"]
)
SPANS_LOST = Counter("understudy_spans_lost_total", "Spans that did not reach the collector.")
IN_PROGRESS = Gauge("understudy_requests_in_progress", "Requests being answered.", multiprocess_mode="livesum")
BREAKER_STATES = ("closed", "half_open", "open", "forced_open", "disabled")

# A counter that is born at 1 has not increased, as far as Prometheus can tell: what alerts watch begins at 0.
for _log in ("predictions", "shadow", "labels"):
    LOG_DROPS.labels(_log)
for _role in ("primary", "fallback", "shadow"):
    RUNNER_KILLS.labels(_role)
SHADOW_SAMPLED.labels("shadow")
for _answer in (("primary", "normal"), ("primary", "degraded"), ("fallback", "degraded"), ("none", "none")):
    PREDICTIONS.labels(*_answer)

# Finding a series by its labels costs as much as counting; these are found once.
_stage = cache(STAGE.labels)
_age = cache(AGE.labels)
_prediction = cache(PREDICTIONS.labels)
_score = cache(SCORE.labels)
_request = cache(REQUESTS.labels)
_shadow = cache(SHADOW.labels)
_sampled = cache(SHADOW_SAMPLED.labels)
_split = cache(SPLIT.labels)


def observe_stage(stage: str, seconds: float) -> None:
    """Count a stage's duration."""
    _stage(stage).observe(seconds)


def observe_age(view: str, seconds: float) -> None:
    """Count the age of a value that was used."""
    _age(view).observe(seconds)


def count_prediction(role: str, confidence: str, score: float) -> None:
    """Count an answer, and its score when a model gave it."""
    _prediction(role, confidence).inc()
    if role != "none":
        _score(role).observe(score)


def count_arm(arm: str, role: str) -> None:
    """Count an answer of a split."""
    _split(arm, role).inc()


def count_request(endpoint: str, status: int) -> None:
    """Count an answered HTTP request."""
    _request(endpoint, str(status)).inc()


def expect(role: str) -> None:
    """Let what alerts watch of a shadow's slot begin at 0."""
    RUNNER_KILLS.labels(role)
    _sampled(role)


def count_sampled(role: str, count: int) -> None:
    """Count requests that a role is to rehearse."""
    _sampled(role).inc(count)


def count_rehearsals(role: str, outcome: str, reason: str, count: int) -> None:
    """Count what became of sampled requests."""
    _shadow(role, outcome, reason).inc(count)


def count_shadow_scores(role: str, scores: Sequence[float]) -> None:
    """Count scores that a shadow gave, a whole call's together.

    A histogram takes values one by one (prometheus_client 0.24), two counters each: a third of what a shadow cost its
    gateway. These are the counters it would have raised.
    """
    histogram = _score(role)
    if scores:
        histogram._sum.inc(sum(scores))
    for bucket, count in Tally(bisect_left(histogram._upper_bounds, score) for score in scores).items():
        histogram._buckets[bucket].inc(count)


def breaker_changed(role: str, state: str) -> None:
    """Show a breaker's new state."""
    BREAKER.labels(role).set(BREAKER_STATES.index(state))
    BREAKER_CHANGES.labels(role, state).inc()


def forget_dead_processes() -> None:
    """Take back what killed processes last said of themselves, such as an open breaker.

    BentoML (1.4.39) does so only for processes that end in good order; its counters stay, as they must. Its supervisor
    may have started the next one before it has taken notice of the death: a zombie is dead.
    """
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*_*.db")}:
        if pid.isdigit() and not _lives(int(pid)):
            # Another process that starts may be faster.
            with suppress(FileNotFoundError):
                mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # Somebody else's, of whom more is not told.
        return True


# The process that replaces a dead one is the first to know; the library, too, opens its files when it is imported.
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    forget_dead_processes()
