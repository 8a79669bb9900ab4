"""The dashboard about what the models say."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards_kit import HERE, Query, Show, lines, number, spread
from deploy.dashboards_page import Page

_RATE = "$__rate_interval"


def predictions() -> Page:
    """What does the model say, and how sure is it?"""
    page = Page("predictions", "Predictions", "What does the model say, and how sure is it?")
    share = 'sum(rate(understudy_score_bucket{%s, role="primary", le="%s"}[1h]))'
    page.add(
        number(
            "From 0.4 to 0.6, 1 h",
            "Share of the primary's scores that decide nothing. Above 30 % it has lost its confidence.",
            Query("max(job:understudy_score_unsure:ratio_rate1h)", "unsure"),
            Show("percentunit", 0.3, width=6, height=4),
        ),
        number(
            "Above 0.5, 1 h",
            "Share of the primary's scores above 0.5. A jump is a change of the world or of the inputs.",
            Query(
                f'1 - {share % (HERE, "0.5")} / (sum(rate(understudy_score_count{{{HERE}, role="primary"}}[1h])) > 0)',
                "positive",
            ),
            Show("percentunit", width=6, height=4),
        ),
        number(
            "Degraded",
            "Share of answers that callers were told to act on with care.",
            Query(
                f'sum(rate(understudy_predictions_total{{{HERE}, confidence!="normal"}}[1h])) / '
                f"(sum(rate(understudy_predictions_total{{{HERE}}}[1h])) > 0)",
                "degraded",
            ),
            Show("percentunit", 0.1, width=6, height=4),
        ),
        number(
            "Answers a minute",
            "Predictions, rows of batches counted one by one.",
            Query(f"60 * sum(rate(understudy_predictions_total{{{HERE}}}[{_RATE}]))", "answers"),
            Show("short", width=6, height=4),
        ),
        Row("Scores"),
        *(
            spread(
                f"Scores of the {role}",
                "The darker, the more scores in that tenth. A band that moves up or down is a shift of the mean; one "
                "that gathers in the middle is lost confidence.",
                Query(f'sum by (le) (increase(understudy_score_bucket{{{HERE}, role="{role}"}}[{_RATE}]))', "{{le}}"),
                Show("short"),
            )
            for role in ("primary", "fallback", "shadow")
        ),
        lines(
            "Mean score by role",
            "Primary and shadow see the same requests: a gap between them is a difference between the models.",
            [
                Query(
                    f"sum by (role) (rate(understudy_score_sum{{{HERE}}}[1h])) / (sum by (role) "
                    f"(rate(understudy_score_count{{{HERE}}}[1h])) > 0)",
                    "{{role}}",
                )
            ],
            Show("percentunit", width=12),
        ),
        lines(
            "Share from 0.4 to 0.6 over time",
            "The dashed line is the limit.",
            [
                Query("max(job:understudy_score_unsure:ratio_rate1h)", "service, 1 h"),
                Query("max(understudy_low_confidence_share)", "monitoring job's window"),
            ],
            Show("percentunit", 0.3, width=12),
        ),
    )
    return page
