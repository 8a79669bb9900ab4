"""Where this bundle's Feast store is: one configuration for training and serving, placed below the state folder."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import yaml
from feast.repo_config import RepoConfig

from service.settings import ROOT, Settings

os.environ.setdefault("FEAST_USAGE", "False")

SQLITE = "service.online_store.NewestSqliteOnlineStore"
REDIS = "service.online_redis.NewestRedisOnlineStore"
REPO = ROOT / "feature_repo"


def repo_config(settings: Settings, *, offline: bool = False, reads_only: bool = False) -> RepoConfig:
    """Read ``feature_repo/feature_store.yaml`` with its local files moved below ``settings.state_dir``.

    Args:
        offline: whether features will be joined too; a service's image holds no join engine.
        reads_only: for a service, which never writes to the online store and must not wait for it for long.
    """
    plain: dict[str, Any] = yaml.safe_load((REPO / "feature_store.yaml").read_text())
    plain["repo_path"] = REPO
    plain["registry"] = {**plain["registry"], "path": str(settings.state_dir.resolve() / "registry.db")}
    timeout = {"timeout_s": settings.lookup_timeout_ms / 1000} if reads_only else {}
    if settings.feature_store == "redis":
        plain["online_store"] = {"type": REDIS, "connection_string": settings.redis, **timeout}
    elif plain["online_store"]["type"] == SQLITE:
        path = str(settings.state_dir.resolve() / "online.db")
        plain["online_store"] = {"type": SQLITE, "path": path, "read_only": reads_only, **timeout}
    if not offline:
        plain.pop("offline_store", None)
    return RepoConfig(**plain)


@lru_cache(maxsize=1)
def project() -> str:
    """Return the Feast project's name, which is also the model's name in the registry."""
    return str(yaml.safe_load((REPO / "feature_store.yaml").read_text())["project"])
