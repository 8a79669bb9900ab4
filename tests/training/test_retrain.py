"""Retraining with a real training: what it makes rehearses, and nothing is promoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.retrain import retrain
from service.clock import parse_instant
from service.progress import Say
from service.roles import read_roles
from service.settings import Settings
from tests.bundle import settings_in
from training.train import train

pytestmark = pytest.mark.slow


def silent(_: str) -> None:
    """Say nothing."""


def test_an_old_primary_gets_a_shadow_trained_as_of_the_clock(raw_folder: Path, tmp_path: Path) -> None:
    own = settings_in(tmp_path, retrain_max_age_days=15.0)
    train(own, parse_instant("2013-03-01"), "auto", 7, silent, raw_folder)
    before = read_roles(own.models_dir)

    def really(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
        return train(own, at, slot, 7, say, raw_folder)

    done = retrain(own, parse_instant("2013-03-20"), really, silent)

    after = read_roles(own.models_dir)
    record = json.loads((own.models_dir / after.seats["shadow"].package / "record.json").read_text())
    assert (done.decision, done.did, done.slot) == ("retrain", "trained", "shadow")
    assert {role: seat for role, seat in after.seats.items() if role != "shadow"} == dict(before.seats)
    assert record["as_of"] == "2013-03-20T00:00:00+00:00"
    assert retrain(own, parse_instant("2013-03-21"), really, silent).did == "nothing"
