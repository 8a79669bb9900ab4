"""The dashboards about serving: the service itself, and its features."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards_kit import GREEN, GREY, HERE, ORANGE, RED, Query, Show, bars, lines, number, states
from deploy.dashboards_page import Page

_API = 'endpoint=~"/predict|/predict_batch"'
_RATE = "$__rate_interval"


def _quantile(q: float, of: str, series: str, labels: str = HERE) -> str:
    return f"histogram_quantile({q}, sum by ({of}le) (rate({series}_bucket{{{labels}}}[{_RATE}])))"


def service() -> Page:
    """Is there an answer, in time, and by whom?"""
    page = Page("service", "Service", "Is there an answer, in time, and by whom?")
    page.add(
        number(
            "Requests",
            "Requests a second, of any kind.",
            Query(f"sum(rate(understudy_requests_total{{{HERE}}}[{_RATE}]))", "requests"),
            Show("reqps", width=4, height=4),
        ),
        number(
            "Failed, 1 h",
            "Share of valid requests that got 5xx or 429. Objective: at most 0.1 %.",
            Query("max(job:understudy_requests_failed:ratio_rate1h)", "failed"),
            Show("percentunit", 0.001, width=4, height=4),
        ),
        number(
            "Late, 1 h",
            "Share of answers that took more than 50 ms. Objective: at most 1 %.",
            Query("max(job:understudy_requests_slow:ratio_rate1h)", "late"),
            Show("percentunit", 0.01, width=4, height=4),
        ),
        number(
            "By the fallback",
            "Share of answers that the fallback gave. Above 10 % look at the reasons below.",
            Query('max(job_role:understudy_predictions:ratio_rate5m{role="fallback"})', "fallback"),
            Show("percentunit", 0.1, width=4, height=4),
        ),
        number(
            "By nobody",
            "Share of answers that are the training base rate because both models failed.",
            Query('max(job_role:understudy_predictions:ratio_rate5m{role="none"})', "none"),
            Show("percentunit", 0.01, width=4, height=4),
        ),
        number(
            "Being answered",
            "Requests inside right now; near what the workers admit at once, callers get 429.",
            Query(f"sum(understudy_requests_in_progress{{{HERE}}})", "inside"),
            Show("short", width=4, height=4),
        ),
        Row("Time"),
        lines(
            "Whole answer",
            "p50, p95 and p99 as BentoML measures them. The dashed line is the deadline; a p99 that touches it "
            "means that answers are cut off.",
            [
                Query(_quantile(q, "", "bentoml_service_request_duration_seconds", f"{HERE}, {_API}"), name)
                for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            Show("s", 0.05, width=12),
        ),
        lines(
            "p99 by stage",
            "Which stage makes answers slow. On a healthy service: lookup 5 ms, validate 2 ms, primary 12 ms, "
            "post and log 1 ms at most.",
            [Query(_quantile(0.99, "stage, ", "understudy_stage_seconds"), "{{stage}}")],
            Show("s", width=12),
        ),
        lines(
            "p95 by stage",
            "As above, for one request in twenty.",
            [Query(_quantile(0.95, "stage, ", "understudy_stage_seconds"), "{{stage}}")],
            Show("s", width=12),
        ),
        lines(
            "p50 by stage",
            "The usual request. What rises here is load or a larger model, not an outlier.",
            [Query(_quantile(0.5, "stage, ", "understudy_stage_seconds"), "{{stage}}")],
            Show("s", width=12),
        ),
        Row("Who answers"),
        lines(
            "Answers by role and confidence",
            "The primary's normal answers should fill nearly everything.",
            [
                Query(
                    f"sum by (role, confidence) (rate(understudy_predictions_total{{{HERE}}}[{_RATE}]))",
                    "{{role}}, {{confidence}}",
                )
            ],
            Show("reqps"),
            stacked=True,
        ),
        lines(
            "Reasons not to answer by the primary",
            "features_invalid and store_unavailable point to the feeds; primary_* and circuit_open to the "
            "model's process.",
            [Query(f"sum by (reason) (rate(understudy_fallbacks_total{{{HERE}}}[{_RATE}]))", "{{reason}}")],
            Show("reqps"),
            stacked=True,
        ),
        lines(
            "Requests by status",
            "400 and 413 are the callers' mistakes; 429 is overload; 5xx should never be there.",
            [Query(f"sum by (status) (rate(understudy_requests_total{{{HERE}}}[{_RATE}]))", "{{status}}")],
            Show("reqps"),
            stacked=True,
        ),
        Row("Parts"),
        states(
            "Circuit breakers",
            "One row for each role and worker. Open: that model is not asked. Forced and disabled are somebody's hand.",
            Query(f"understudy_breaker_state{{{HERE}}}", "{{role}} {{instance}} {{pid}}"),
            [("closed", GREEN), ("half open", ORANGE), ("open", RED), ("forced open", "purple"), ("disabled", GREY)],
            Show("short"),
        ),
        states(
            "Runners",
            "Whether the process of a role is there and has a model. A shadow without a seat is down, rightly.",
            Query(f"understudy_runner_up{{{HERE}}}", "{{role}} {{instance}}"),
            [("down", RED), ("up", GREEN)],
            Show("short"),
        ),
        lines(
            "Runners killed, log records lost",
            "Both stay at zero. A killed runner hung for seconds; a lost record is a full or read-only disk.",
            [
                Query(
                    f"sum by (role) (increase(understudy_runner_kills_total{{{HERE}}}[{_RATE}]))", "killed: {{role}}"
                ),
                Query(f"sum by (log) (increase(understudy_log_dropped_total{{{HERE}}}[{_RATE}]))", "lost: {{log}}"),
            ],
            Show("short"),
        ),
    )
    return page


def features() -> Page:
    """Are the served values fresh, there, and within their contract?"""
    page = Page("features", "Features", "Are the served values fresh, there, and within their contract?")
    page.add(
        lines(
            "Age of the newest stored value",
            "Grows steadily when a feed has stopped, traffic or none.",
            [Query(f"max by (view) (understudy_feature_data_age_seconds{{{HERE}}})", "{{view}}")],
            Show("s", width=12),
        ),
        lines(
            "Age against what the contract allows",
            "1 is the limit. Views without a limit are not here.",
            [
                Query(
                    f"max by (view) (understudy_feature_data_age_seconds{{{HERE}}}) / max by (view) "
                    f"(understudy_feature_max_staleness_seconds{{{HERE}}})",
                    "{{view}}",
                )
            ],
            Show("percentunit", 1.0, width=12),
        ),
        lines(
            "Age of the values used, p50",
            "Of the keys that were asked for. Far above the newest value's age: those keys are not fed.",
            [Query(_quantile(0.5, "view, ", "understudy_feature_age_seconds"), "{{view}}")],
            Show("s", width=12),
        ),
        lines(
            "Age of the values used, p99",
            "As above, for one request in a hundred: rare keys.",
            [Query(_quantile(0.99, "view, ", "understudy_feature_age_seconds"), "{{view}}")],
            Show("s", width=12),
        ),
        Row("Violations"),
        lines(
            "Share of requests by kind",
            "missing and null: the store has no value. stale: too old. range, type, category: the feed computes "
            "something else.",
            [Query("sum by (kind) (job_feature_kind:understudy_feature_violations:ratio_rate10m)", "{{kind}}")],
            Show("percentunit", 0.05, width=12),
        ),
        bars(
            "Worst now",
            "Share of requests of ten minutes in which the feature, or view, broke its contract.",
            Query(
                "topk(10, sum by (feature, kind) (job_feature_kind:understudy_feature_violations:ratio_rate10m))",
                "{{feature}}: {{kind}}",
            ),
            Show("percentunit", 0.05, width=12),
        ),
        lines(
            "Lookup",
            "Time to read the online store. Misses its part of the deadline: store_unavailable.",
            [
                Query(_quantile(q, "", "understudy_stage_seconds", f'{HERE}, stage="lookup"'), name)
                for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            Show("s", width=12),
        ),
        lines(
            "Requests that could not use their features",
            "Answered by the fallback because a value broke its contract or the store was silent.",
            [
                Query(
                    f"sum by (reason) (rate(understudy_fallbacks_total{{{HERE}, "
                    f'reason=~"features_invalid|store_unavailable"}}[{_RATE}]))',
                    "{{reason}}",
                )
            ],
            Show("reqps", width=12),
        ),
    )
    return page
