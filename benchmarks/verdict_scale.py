"""Time and memory of ``monitoring.compare_job`` over 336,776 logged and labelled pairs, without the Evidently pages.

The logs are written first, with the real contract's fields; reading them is part of what is timed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tqdm import tqdm

from feature_repo import features as definitions
from service.contract import Contract, FieldSpec
from service.definitions import contracts

ROWS, DAYS = 336_776, 365
MOST_SECONDS, MOST_GB = 20.0, 2.0
SEGMENT = 50_000
START = datetime(2013, 1, 1, tzinfo=UTC)


def run() -> int:
    """Write the logs, time the command, print one JSON line, and return the exit code."""
    contract = contracts(definitions)["primary"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_logs(home / "logs", contract)
        command = [sys.executable, "-m", "monitoring.compare_job", "--no-evidently", "--logs", str(home / "logs")]
        # A year of one campaign, judged the day after it: neither expired nor on anybody's record.
        env = {
            **os.environ, "UNDERSTUDY_CAMPAIGN_DAYS": "400", "UNDERSTUDY_STATE_DIR": str(home / "state"),
            "UNDERSTUDY_CLOCK": "2014-01-02T00:00:00+00:00",
        }  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(home / "out")], stdout=subprocess.PIPE, text=True, check=False, env=env
        )
        seconds = time.perf_counter() - began
        gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(done.stdout)
    if done.returncode != 0:
        return 1
    result = {"rows": ROWS, "seconds": round(seconds, 1), "peak_gb": round(gigabytes, 2)}
    print(json.dumps({**result, "verdict": json.loads(done.stdout.splitlines()[-1])["verdict"]}))
    return 0 if seconds <= MOST_SECONDS and gigabytes <= MOST_GB else 1


def write_logs(folder: Path, contract: Contract) -> None:
    """Write a year of predictions, shadow scores and labels."""
    for log in ("predictions", "shadow", "labels"):
        (folder / log).mkdir(parents=True)
    lines = {log: bytearray() for log in ("predictions", "shadow", "labels")}
    for i, made in enumerate(tqdm(_records(contract), total=ROWS, desc="writing logs", file=sys.stderr, mininterval=2)):
        for log, record in made.items():
            lines[log] += orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
        if (i + 1) % SEGMENT == 0 or i + 1 == ROWS:
            for log, body in lines.items():
                (folder / log / f"20130101T000000-1-bench-{i // SEGMENT:05d}.jsonl").write_bytes(body)
                body.clear()


def _records(contract: Contract) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(0)
    odds = rng.normal(-1.2, 1.2, ROWS)
    label = (rng.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float).tolist()
    primary, shadow = ((1 / (1 + np.exp(-(odds + rng.normal(0, sd, ROWS))))).round(6).tolist() for sd in (0.4, 0.35))
    columns = {spec.name: _values(rng, spec) for spec in contract.fields}
    ms = rng.gamma(9, 0.3, (2, ROWS)).round(3).tolist()
    views = [view.name for view in contract.views]
    for i in range(ROWS):
        at = START + i * timedelta(days=DAYS) / ROWS
        request_id = f"r{i:07d}"
        vector = {name: values[i] for name, values in columns.items()}
        yield {
            "predictions": {
                "request_id": request_id, "at": at, "vector": vector,
                "request": {f.name: vector.get(f.name) for f in contract.request_fields},
                "event_times": {view: at - timedelta(minutes=20) for view in views}, "role": "primary",
                "model_version": "1", "model_digest": "a" * 64, "prediction": primary[i], "confidence": "normal",
                "fallback_reason": None, "violations": [], "shadow_sampled": True, "service_version": "0.1.0",
                "stages_ms": {"lookup": 0.6, "validate": 0.1, "primary": ms[0][i], "total": ms[0][i] + 0.8},
            },
            "shadow": {
                "request_id": request_id, "at": at, "outcome": "scored", "reason": None, "model_version": "2",
                "model_digest": "b" * 64, "prediction": shadow[i], "latency_ms": ms[1][i], "batch": 1,
            },
            "labels": {
                "request_id": request_id, "label": label[i], "known_at": at + timedelta(hours=8),
                "at": at + timedelta(hours=8, minutes=1),
            },
        }  # fmt: skip


def _values(rng: np.random.Generator, spec: FieldSpec) -> list[Any]:
    if spec.is_category:
        allowed = np.array(spec.allowed or [f"{spec.name}{i}" for i in range(16)], dtype=object)
        return list(allowed[rng.integers(0, len(allowed), ROWS)])
    low, high = spec.minimum or 0.0, spec.maximum or 1.0
    values = rng.uniform(low, high, ROWS)
    return [int(v) for v in values] if spec.dtype == "int" else values.round(3).tolist()
