"""Where this bundle's Feast store is: one configuration for training and serving, placed below the state folder."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import yaml
from feast.repo_config import RepoConfig

from service.settings import ROOT, Settings

os.environ.setdefault("FEAST_USAGE", "False")

REPO = ROOT / "feature_repo"


def repo_config(settings: Settings, *, offline: bool) -> RepoConfig:
    """Read ``feature_repo/feature_store.yaml`` with its local files moved below ``settings.state_dir``.

    The service passes ``offline=False``: it reads the online store only, and its image holds no join engine.
    """
    plain: dict[str, Any] = yaml.safe_load((REPO / "feature_store.yaml").read_text())
    state = settings.state_dir.resolve()
    plain["repo_path"] = REPO
    plain["registry"] = {**plain["registry"], "path": str(state / "registry.db")}
    if plain["online_store"]["type"] == "sqlite":
        plain["online_store"]["path"] = str(state / "online.db")
    if not offline:
        plain.pop("offline_store", None)
    return RepoConfig(**plain)


@lru_cache(maxsize=1)
def project() -> str:
    """Return the Feast project's name, which is also the model's name in the registry."""
    return str(yaml.safe_load((REPO / "feature_store.yaml").read_text())["project"])
