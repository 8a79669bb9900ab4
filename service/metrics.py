"""Every Prometheus series the gateway exports; label values come from closed sets."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
SCORE = Histogram("understudy_score", "Scores by role.", ["role"], buckets=_SCORE_BUCKETS)
SHADOW = Counter("understudy_shadow_total", "Sampled requests by what became of them.", ["outcome", "reason"])
SHADOW_SAMPLED = Counter("understudy_shadow_sampled_total", "Requests the shadow was asked to rehearse.")
SHADOW_SECONDS = Histogram("understudy_shadow_seconds", "Duration of a call to the shadow.", buckets=_STAGE_BUCKETS)
SHADOW_QUEUE = Gauge("understudy_shadow_queue", "Requests waiting for the shadow.", multiprocess_mode="livesum")
LOG_DROPS = Counter("understudy_log_dropped_total", "Records that could not be written, by log.", ["log"])
LABELS = Counter("understudy_labels_total", "Ground truths received.")
