"""Where a model came from: what must be the same for the same model to come out again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from typing import Any

from service.settings import ROOT

PACKAGES = ("lightgbm", "numpy", "pandas", "duckdb", "feast", "scikit-learn", "skops", "skl2onnx", "xgboost-cpu")


def environment() -> dict[str, Any]:
    """Code and machine: commit, whether the tree differed from it, lock, Python, platform, packages."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "lock": hashlib.sha256((ROOT / "requirements/dev.txt").read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
