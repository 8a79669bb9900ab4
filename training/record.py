"""Where a model came from: what must be the same for the same model to come out again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.settings import ROOT

PACKAGES = (
    "lightgbm",
    "numpy",
    "pandas",
    "duckdb",
    "feast",
    "scikit-learn",
    "skops",
    "skl2onnx",
    "xgboost-cpu",
    "pyarrow",
)
# What a model depends on; a changed page of documentation makes no other model.
SOURCES = ("service", "feature_repo", "training", "requirements/dev.txt")


def environment() -> dict[str, Any]:
    """Code and machine: commit, whether its sources or the lock were changed, lock, Python, platform, packages.

    Commit and ``dirty`` are null without git.
    """
    status = _git("status", "--porcelain", "--", *SOURCES)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "lock": sha256(ROOT / "requirements/dev.txt"),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def table_hashes(state_dir: Path, views: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every prepared table: ``rows`` and one per view."""
    tables = {"rows": state_dir / "rows.parquet"}
    tables |= {view: state_dir / f"features/{view}.parquet" for view in views if view != "rows"}
    return {name: sha256(path) for name, path in sorted(tables.items())}


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
