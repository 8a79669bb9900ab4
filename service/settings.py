"""All settings of the bundle: one frozen object, one environment prefix, one sentence each."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "UNDERSTUDY_"


class Settings(BaseSettings):
    """Settings, read once from the environment; an unknown ``UNDERSTUDY_`` variable is an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    state_dir: Path = Field(
        ROOT / "state", description="Folder of everything that changes: feature tables, online store, logs."
    )
    models_dir: Path = Field(ROOT / "models", description="Folder of the model packages and of `roles.json`.")
    clock: str = Field(
        "wall", description="`wall`, an ISO instant to start from, or the path of a replay's clock file."
    )
    feature_store: Literal["sqlite", "redis"] = Field(
        "sqlite", description="Online store: `sqlite` in the state folder, or `redis`."
    )
    redis: str = Field(
        "127.0.0.1:6379", description="Redis server: `host:port`, then `,db=0`, `,password=...`, `,ssl=true`."
    )
    lookup_timeout_ms: float = Field(
        250.0, gt=0, description="Longest a service's call to the online store may hold its thread, in milliseconds."
    )
    data_age_every_s: float = Field(
        15.0, gt=0, description="Time between two looks at the age of the stored data, in seconds."
    )
    deadline_ms: float = Field(
        50.0, gt=0, description="Time for one answer, in milliseconds; up to five times as much for 32 rows of a batch."
    )
    fallback_reserve_ms: float = Field(15.0, gt=0, description="Part of the deadline kept back for the fallback.")
    workers: int = Field(1, gt=0, description="Gateway processes; each has its own log segments and breakers.")
    run_dir: Path | None = Field(
        None, description="Folder of the private sockets between gateway and runners; empty: a new one below /tmp."
    )
    warmup_s: float = Field(
        20.0,
        ge=0,
        description="Longest the gateway waits at start for primary and fallback before it is ready, in seconds.",
    )
    max_inflight: int = Field(
        64, gt=0, description="Requests one worker answers at once (32 rows of a batch count as one); more are 429."
    )
    runner_hung_s: float = Field(
        3.0, ge=0, description="Silence after which a runner is killed and started anew, in seconds; 0: never."
    )
    breaker_error_rate: float = Field(0.1, gt=0, le=1, description="Share of failed calls that opens a breaker.")
    breaker_slow_rate: float = Field(0.5, gt=0, le=1, description="Share of slow calls that opens a breaker.")
    breaker_slow_ms: float = Field(
        0.0, ge=0, description="Duration from which a call is slow, in milliseconds; 0: half of the deadline."
    )
    breaker_window_s: float = Field(300.0, gt=0, description="Time over which a circuit breaker counts, in seconds.")
    breaker_min_calls: int = Field(10, gt=0, description="Fewest calls in that time that say anything.")
    breaker_open_s: float = Field(
        60.0, gt=0, description="Time until an open circuit breaker probes without evidence of recovery, in seconds."
    )
    breaker_probes: int = Field(3, gt=0, description="Good calls that close it again, and most of them at once.")
    body_limit_bytes: int = Field(1_048_576, gt=0, description="Largest request body accepted; more is 413.")
    batch_limit: int = Field(1000, gt=0, description="Most rows in one `/predict_batch` or `/labels` call.")
    shadows: int = Field(
        1, ge=1, le=4, description="Shadows that rehearse at once: slots `shadow`, `shadow_2`, `shadow_3`, `shadow_4`."
    )
    shadow_sample: float = Field(1.0, ge=0, le=1, description="Share of requests rehearsed, by each shadow.")
    shadow_key: str = Field(
        "",
        description="Request field by which that share is drawn, so that a key falls one way; empty: by request.",
    )
    shadow_queue: int = Field(
        1000, gt=0, description="Requests that may wait for the shadow; more are dropped, counted."
    )
    shadow_batch: int = Field(256, gt=0, description="Most rows sent to the shadow in one call.")
    shadow_timeout_ms: float = Field(1000.0, gt=0, description="Time the shadow has for one call, in milliseconds.")
    shadow_gather_ms: float = Field(
        50.0, ge=0, description="Longest a request waits for others to go to the shadow with it, in milliseconds."
    )
    shadow_cpu: float = Field(
        0.1,
        ge=0,
        description="Processors a shadow's calls may take on average; what does not fit waits, and is dropped when the "
        "queue is full. One that would need more gets less, down to a twentieth, while its gateway is busy. 0: any.",
    )
    shadow_memory_mb: int = Field(
        1024,
        ge=0,
        description="Memory the shadow's process may use, in MB; beyond it, it ends and starts anew. 0: any.",
    )
    shadow_drain_s: float = Field(
        5.0, ge=0, description="Time the shadow's queue has to empty at shutdown, in seconds."
    )
    noise_sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the primary's answers it is asked again for: the noise floor of a verdict.",
    )
    campaign_days: float = Field(
        28.0, gt=0, description="Time after which a campaign without a verdict has expired, in days of the clock."
    )
    campaign_min_days: float = Field(
        7.0, ge=0, description="Fewest days of the clock, and whole days with labels, before a verdict promotes."
    )
    campaign_min_rows: int = Field(2000, ge=0, description="Fewest labelled pairs before a verdict promotes.")
    campaign_min_labels: float = Field(
        0.8, ge=0, le=1, description="Least share of the predictions old enough that have a label, to promote."
    )
    label_maturity_h: float = Field(
        24.0, ge=0, description="Age at which a prediction's label should have arrived, in hours."
    )
    label_complete: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of labels from which a window's truth, and the watermark, count as complete.",
    )
    split_step_hours: float = Field(
        24.0, ge=0, description="Time an A/B split stays at one share before it may be raised, in hours of the clock."
    )
    split_step_requests: int = Field(
        1000, ge=0, description="Requests an A/B split takes at one share before it may be raised."
    )
    watch_days: float = Field(
        7.0, gt=0, description="Time a promoted model is watched and may be taken back by itself, in days of the clock."
    )
    promote_cooldown_days: float = Field(
        7.0, ge=0, description="Time a model that was taken back by itself may not be promoted again, in days."
    )
    predict_token: SecretStr = Field(
        SecretStr(""), description="Bearer tokens for predictions and labels, separated by commas; empty: open to all."
    )
    admin_token: SecretStr = Field(
        SecretStr(""), description="Bearer tokens for the routes below `/admin`; empty: those routes are off."
    )
    otlp_endpoint: str = Field(
        "", description="Collector for traces, OTLP over HTTP, such as `http://127.0.0.1:4318`; empty: no traces."
    )
    trace_sample: float = Field(
        0.01, ge=0, le=1, description="Share of requests traced; a caller's own sampling decision is followed."
    )
    log_keep_days: float = Field(
        0.0, ge=0, description="Days after its last line when a finished log segment is deleted; 0: never."
    )
    log_keep_bytes: int = Field(
        0, ge=0, description="Bytes of a log above which its oldest finished segments are deleted; 0: never."
    )
    redact: str = Field(
        "",
        description="Request fields and features whose values the prediction log does not hold, separated by commas.",
    )
    redact_key: SecretStr = Field(
        SecretStr(""),
        description="Secret of 16 bytes or more: identifiers among them are logged as keyed pseudonyms; empty: not.",
    )
    ship_dsn: SecretStr = Field(
        SecretStr(""), description="PostgreSQL that `make ship` copies the logs to; empty: what `PGHOST` and so on say."
    )
    monitor_window: str = Field("1d", description="Length of the windows that `make monitor` judges: `1d`, `6h`.")
    latency_sla_ms: float = Field(
        0.0, ge=0, description="99th percentile of an answer that was agreed on, in milliseconds; 0: the deadline."
    )
    status_stale_days: float = Field(
        2.0, gt=0, description="Age from which a measurement no longer counts on the status page, in days of the clock."
    )
    retrain_max_age_days: float = Field(
        30.0, ge=0, description="Age of the primary's training from which retraining is due, in days; 0: never."
    )
    retrain_every_days: float = Field(
        0.0, ge=0, description="Days after the newest training when retraining is due anyway; 0: no schedule."
    )
    retrain_cooldown_days: float = Field(
        7.0, ge=0, description="Days after a training, or one that the gate refused, in which none is due."
    )
    tracking_uri: str = Field("", description="MLflow tracking server; empty for SQLite in the state folder.")
    segment_bytes: int = Field(
        64_000_000, gt=0, description="Size at which a log segment is closed and a new one begun."
    )

    @model_validator(mode="after")
    def _reserve_fits(self) -> Self:
        if self.fallback_reserve_ms >= self.deadline_ms:
            msg = (
                f"fallback_reserve_ms={self.fallback_reserve_ms} leaves the primary no time "
                f"(deadline_ms={self.deadline_ms}); make it smaller"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _no_unknown_variable(self) -> Self:
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(v for v in os.environ if v.startswith(PREFIX) and v not in known)
        if unknown:
            msg = f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            raise ValueError(msg)
        return self

    @property
    def features_dir(self) -> Path:
        """Folder of the offline feature tables."""
        return self.state_dir / "features"

    @property
    def log_dir(self) -> Path:
        """Folder of the prediction, shadow and label logs."""
        return self.state_dir / "logs"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the process's settings, read from the environment on first use."""
    return Settings()
