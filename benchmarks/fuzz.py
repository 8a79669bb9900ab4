"""Schemathesis against everything the OpenAPI document of a service describes: right requests and wrong ones.

Fails on an answer with 5xx, on an answer that is not of the documented shape, on a wrong request that is accepted,
and when no valid request of an operation got through, for then nothing was tried. Without ``--url`` it serves what
`make train` made, on a copy of the online store. Last line of stdout: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import schemathesis
import yaml
from hypothesis import strategies as st

from deploy.demo import BIN, environment, serving
from service.clock import parse_instant
from service.settings import ROOT, settings

CASES = 10_000
# Only these have anything to vary.
OPERATIONS = 3
_AT = "FUZZ_AT"
# Rows of a batch are judged one by one, in an answer with 200: its shape is checked, its status says nothing.
_CONFIG = """
[checks]
not_a_server_error.enabled = true
response_schema_conformance.enabled = true
content_type_conformance.enabled = true
status_code_conformance.enabled = true
negative_data_rejection.enabled = true
{others}
[[operations]]
include-path = "/predict_batch"
checks.negative_data_rejection.enabled = false
"""
_OTHERS = (
    "response_headers_conformance",
    "positive_data_acceptance",  # limits relative to the clock are in no schema
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
    "object_level_authorization",
)


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        cases: requests sent.
        accepted: answered with 2xx among the valid ones Schemathesis counts, by operation that takes a body.
        server_errors: kinds of case, by operation, that were answered with 5xx.
        schema_violations: kinds of answer, by operation, that the document does not describe, or that accepted what
            it forbids.
        unsent: cases that could not be made or sent.
    """

    cases: int
    accepted: dict[str, int]
    server_errors: int
    schema_violations: int
    unsent: int

    @property
    def passed(self) -> bool:
        """Whether nothing was found, and every operation was really tried."""
        found = self.server_errors + self.schema_violations + self.unsent
        return found == 0 and len(self.accepted) == OPERATIONS and all(self.accepted.values())


def moments() -> st.SearchStrategy[str]:
    """Times around the service's now: most others are refused, and nothing behind the check would be reached."""
    now = parse_instant(os.environ[_AT])
    return st.builds(
        lambda minutes, hours: (
            (now + timedelta(minutes=minutes)).astimezone(timezone(timedelta(hours=hours))).isoformat()
        ),
        st.integers(-60, 48 * 60),
        st.integers(-12, 14),
    )


def fuzz(url: str, at: datetime, cases: int, seed: int) -> Outcome:
    """Send about so many cases to a service whose clock shows ``at``."""
    with tempfile.TemporaryDirectory() as folder:
        config, report = Path(folder) / "schemathesis.toml", Path(folder) / "report.json"
        config.write_text(_CONFIG.format(others="\n".join(f"{name}.enabled = false" for name in _OTHERS)))
        command = [
            str(BIN / "schemathesis"), "--no-color", "--config-file", str(config), "run", f"{url}/docs.json",
            "--phases", "coverage,fuzzing", "--max-examples", str(-(-cases // OPERATIONS)), "--seed", str(seed),
            "--mode", "all", "--workers", "2", "--continue-on-failure", "--warnings", "off",
            "--suppress-health-check", "all", "--report", "json", "--report-json-path", str(report),
        ]  # fmt: skip
        # Schemathesis imports this module for the times at its end.
        hooks = {"SCHEMATHESIS_HOOKS": "benchmarks.fuzz", _AT: at.isoformat(), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env={**os.environ, **hooks}, check=False)
        if not report.exists():
            msg = f"schemathesis ended with exit code {done.returncode} and wrote no report; see above"
            raise SystemExit(msg)
        return outcome(json.loads(report.read_text()))


def outcome(report: dict[str, Any]) -> Outcome:
    """Read Schemathesis' report."""
    failed = dict.fromkeys(("ServerError", "other"), 0)
    for failure in report["failures"]:
        failed["ServerError" if failure["type"] == "ServerError" else "other"] += failure["count"]
    accepted = {
        operation: sum(phase["accepted"] for phase in phases.values())
        for operation, phases in report["valid_rates"].items()
        if operation.startswith("POST ")
    }
    unsent = report["test_cases"]["errored"] + len(report["errors"])
    return Outcome(report["test_cases"]["generated"], accepted, failed["ServerError"], failed["other"], unsent)


@contextmanager
def trained() -> Iterator[tuple[str, datetime]]:
    """Serve what `make train` made until the block ends, writing elsewhere; yields address and the clock's start."""
    made = settings()
    source = made.state_dir / "online.db"
    if not (made.models_dir / "roles.json").exists() or not source.exists():
        msg = f"there is no trained bundle in {made.models_dir} and {made.state_dir}; run `make train`, or name --url"
        raise SystemExit(msg)
    at = parse_instant(str(yaml.safe_load((ROOT / "params.yaml").read_text())["as_of"]))
    home = Path(tempfile.mkdtemp(prefix="understudy-fuzz-"))
    try:
        (home / "state").mkdir()
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(home / "state" / "online.db")) as new:
            old.backup(new)
        env = environment(home) | {"UNDERSTUDY_MODELS_DIR": str(made.models_dir), "UNDERSTUDY_CLOCK": at.isoformat()}
        with serving(env, home / "serve.log") as url:
            yield url, at
    finally:
        shutil.rmtree(home)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the last line of stdout is the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running service instead of one of its own; it will log what is sent")
    parser.add_argument("--at", help="what that service's clock shows (ISO); needed with --url")
    parser.add_argument("--cases", type=int, default=CASES, help="about how many requests (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(argv)
    if (given.url is None) != (given.at is None):
        parser.error("--url and --at go together")
    if given.url:
        found = fuzz(given.url, parse_instant(given.at), given.cases, given.seed)
    else:
        with trained() as (url, at):
            found = fuzz(url, at, given.cases, given.seed)
    print(json.dumps(asdict(found)))
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())

if _AT in os.environ:
    schemathesis.openapi.format("date-time", moments())
