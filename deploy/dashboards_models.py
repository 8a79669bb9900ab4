"""The dashboards about models: the shadow's campaign, and whether the primary still fits the world."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards_kit import HERE, Query, Show, bars, lines, number
from deploy.dashboards_page import Page

_RATE = "$__rate_interval"
# The primary is asked again for the noise floor; that is no rehearsal.
_SHADOWS = f'{HERE}, role!="primary"'
_CLOCK = "understudy:clock_timestamp_seconds:max"


def shadow() -> Page:
    """Is the rehearsal one that a verdict can rest on?"""
    page = Page("shadow", "Shadow campaign", "Is the rehearsal one that a verdict can rest on?")
    page.add(
        number(
            "Lost, 1 h",
            "Share of sampled requests that were not scored. Above 5 % the verdict is hold.",
            Query("max(job_role:understudy_shadow_lost:ratio_increase1h)", "lost"),
            Show("percentunit", 0.05, width=6, height=4),
        ),
        number(
            "Sampled, 1 h",
            "Requests the shadow was asked to rehearse.",
            Query("sum(job_role:understudy_shadow_sampled:increase1h)", "sampled"),
            Show("short", width=6, height=4),
        ),
        number(
            "Waiting",
            "Requests in the shadow's queue. A queue that stays long ends in queue_full.",
            Query(f"sum(understudy_shadow_queue{{{_SHADOWS}}})", "waiting"),
            Show("short", width=6, height=4),
        ),
        number(
            "Models",
            "Roles that have a model, from all instances.",
            Query(f"count(count by (role, version) (understudy_model_info{{{HERE}}} == 1))", "models"),
            Show("short", width=6, height=4),
        ),
        Row("Losses"),
        lines(
            "What became of the sampled",
            "Scored should fill everything. What is dropped is named by reason.",
            [
                Query(
                    f"sum by (outcome, reason) (rate(understudy_shadow_total{{{_SHADOWS}}}[{_RATE}]))",
                    "{{outcome}} {{reason}}",
                )
            ],
            Show("reqps", width=12),
            stacked=True,
        ),
        lines(
            "Share lost, by shadow",
            "Lost requests are not random: a shadow that loses the slow ones looks better than it is.",
            [Query("job_role:understudy_shadow_lost:ratio_increase1h", "{{role}}")],
            Show("percentunit", 0.05, width=12),
        ),
        Row("Beside the primary"),
        lines(
            "Duration of a call",
            "The shadow's calls carry many rows, the primary's few: look for steps, not for the gap.",
            [
                Query(
                    f"histogram_quantile({q}, sum by (le) "
                    f"(rate(understudy_shadow_seconds_bucket{{{_SHADOWS}}}[{_RATE}])))",
                    f"shadow {name}",
                )
                for q, name in ((0.5, "p50"), (0.99, "p99"))
            ]
            + [
                Query(
                    f"histogram_quantile(0.99, sum by (le) (rate(understudy_stage_seconds_bucket{{{HERE}, "
                    f'stage="primary"}}[{_RATE}])))',
                    "primary p99",
                )
            ],
            Show("s", width=12),
        ),
        lines(
            "Mean score",
            "Both see the same requests.",
            [
                Query(
                    f'sum by (role) (rate(understudy_score_sum{{{HERE}, role!="fallback"}}[1h])) / (sum by (role) '
                    f'(rate(understudy_score_count{{{HERE}, role!="fallback"}}[1h])) > 0)',
                    "{{role}}",
                )
            ],
            Show("percentunit", width=12),
        ),
        lines(
            "Answers of a split",
            "Who gave the answers of each arm while an A/B split runs.",
            [Query(f"sum by (arm, role) (rate(understudy_split_total{{{HERE}}}[{_RATE}]))", "{{arm}}: {{role}}")],
            Show("reqps", width=12),
        ),
        lines(
            "Labels",
            "Ground truths a second. Without them a campaign stays undecided.",
            [Query(f"sum(rate(understudy_labels_total{{{HERE}}}[{_RATE}]))", "received")],
            Show("short", width=12),
        ),
    )
    return page


def quality() -> Page:
    """Does the primary still fit the world? As the scheduled jobs measured it."""
    page = Page(
        "quality",
        "Model quality",
        "Does the primary still fit the world? As the scheduled jobs measured it.",
        back="now-30d",
    )
    page.add(
        number(
            "Alarms",
            "Alarms of the newest window of the monitoring job.",
            Query("max(understudy_monitor_alarms)", "alarms"),
            Show("short", 1, width=4, height=4),
        ),
        number(
            "Job last ran",
            "By the service's clock. Everything on this page is at least that old.",
            Query(f"{_CLOCK} - max(understudy_monitor_last_run_timestamp_seconds)", "ago"),
            Show("s", 93600, width=4, height=4),
        ),
        number(
            "Window ends",
            "End of the newest window that was measured.",
            Query(f"{_CLOCK} - max(understudy_monitor_window_end_timestamp_seconds)", "ago"),
            Show("s", 180000, width=4, height=4),
        ),
        number(
            "Vectors with skew",
            "Share of audited vectors that differ from what training would have seen. Zero, or a pipeline has "
            "two meanings.",
            Query("max(understudy_skew_mismatch_share)", "differ"),
            Show("percentunit", 0.000001, width=4, height=4),
        ),
        number(
            "Labels known",
            "Share of predictions that have their ground truth.",
            Query("min(understudy_label_coverage)", "known"),
            Show("percentunit", 0.8, below=True, width=4, height=4),
        ),
        number(
            "Labels complete until",
            "Age of the newest predictions whose labels are complete.",
            Query(f"{_CLOCK} - max(understudy_label_watermark_timestamp_seconds)", "ago"),
            Show("s", 259200, width=4, height=4),
        ),
        Row("Drift"),
        bars(
            "PSI by feature, newest window",
            "Below 0.1 nothing; 0.1 to 0.2 look; above 0.2 act, when the job's alarm agrees.",
            Query("sort_desc(max by (feature) (understudy_drift_psi))", "{{feature}}"),
            Show("short", 0.2, width=12, height=14),
        ),
        lines(
            "PSI of the worst features",
            "One feature alone: its feed. Many at once: the world, or another kind of requests.",
            [Query("topk(8, max by (feature) (understudy_drift_psi))", "{{feature}}")],
            Show("short", 0.2, width=12, height=14),
        ),
        lines(
            "Share of features in alarm",
            "From one half on the requests are of another kind than in training.",
            [Query("avg(understudy_drift_alarm)", "share")],
            Show("percentunit", 0.5),
        ),
        lines(
            "Telling windows from training apart",
            "AUC of a classifier that tries. 0.5 is a coin; it sees changes that no single column shows.",
            [Query("max(understudy_domain_auc)", "AUC")],
            Show("short"),
        ),
        lines(
            "Agreement of feature importance",
            "nDCG against training. Below 0.9 the model leans on other features.",
            [Query("min(understudy_importance_ndcg)", "nDCG")],
            Show("short", 0.9, below=True),
        ),
        Row("Predictions and labels"),
        lines(
            "Shift of the mean prediction",
            "In standard deviations of window means. Beyond 2 either way, something has changed.",
            [Query("max(abs(understudy_prediction_mean_shift_sigmas))", "shift")],
            Show("short", 2),
        ),
        lines(
            "Share from 0.4 to 0.6",
            "The dashed line is the limit.",
            [Query("max(understudy_low_confidence_share)", "share")],
            Show("percentunit", 0.3),
        ),
        lines(
            "AUC, by labels and estimated",
            "Of the newest week. The estimate needs no labels; where not to trust it, the monitoring page says.",
            [
                Query('max(understudy_realized{measure="auc", windows="7"})', "by labels"),
                Query('max(understudy_estimated{measure="auc", windows="7"})', "estimated"),
            ],
            Show("short"),
        ),
        lines(
            "Labels against scores",
            "Evidence that performance by labels is not what the scores foretold. From 500 to 1 on it is an alarm.",
            [Query("max(understudy_concept_drift_evidence)", "evidence")],
            Show("short", 500),
        ),
        lines(
            "Labels",
            "Lag: time from prediction to ground truth. Orphans belong to no prediction.",
            [
                Query("max(understudy_label_lag_seconds) / 3600", "lag, hours"),
                Query("max(understudy_labels_orphan)", "orphans"),
            ],
            Show("short"),
        ),
    )
    return page
