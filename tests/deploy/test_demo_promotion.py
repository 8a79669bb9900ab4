"""The demo of a whole campaign: what it plants, when it looks again, and what it calls a failure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import DemoFailed
from deploy.demo_promotion import missed, plant, rehearsed, scrambled
from deploy.moves import playable
from service.package import load_package
from service.roles import move_roles, read_history, read_roles
from tests.bundle import REQUEST, STORED
from tests.deploy.promotions import AT, known, seat, seated

GOOD: dict[str, Any] = {
    "verdict": "promote", "promoted_version": "3", "watch": "survived", "planted_verdict": "reject",
    "planted_reason": "auc_harm", "planted_refused": True, "failed_requests": 0,
}  # fmt: skip


def test_the_planted_model_is_the_primary_with_its_inputs_mixed_up_and_can_play(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    roles = read_roles(settings.models_dir)
    move_roles(settings.models_dir, roles.revision, {"shadow": None})
    primary = seat(settings, "primary")

    digest = plant(settings)

    planted, move = seat(settings, "shadow"), read_history(settings.models_dir)[-1]
    model, changed = playable(settings, planted, known())
    good = load_package(settings.models_dir / primary.package, "1", primary.digest)
    row = {**REQUEST, **{name: value for view in STORED.values() for name, value in view.items()}}
    assert (planted.digest, planted.version, changed) == (digest, "planted", [])
    assert move.at == AT
    assert sorted(model.signature.features) == sorted(good.signature.features)
    assert model.signature.features != good.signature.features
    assert model.score([row]) != good.score([row])
    assert seat(settings, "primary") == primary


def test_inputs_change_places_among_their_own_kind(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    primary = seat(settings, "primary")
    model = load_package(settings.models_dir / primary.package, "1", primary.digest)
    plain = replace(model.signature, features=("a", "x", "b", "y", "c"), categories={"x": ("1", "2"), "y": ("3", "4")})

    mixed = scrambled(plain)

    assert mixed.features == ("b", "y", "c", "x", "a")
    assert mixed.categories == {"x": ("2", "1"), "y": ("4", "3")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verdict", "hold"),
        ("watch", "reverted"),
        ("planted_verdict", "hold"),
        ("planted_refused", False),
        ("failed_requests", 1),
    ],
)
def test_whatever_goes_another_way_is_named(name: str, value: object) -> None:
    assert missed(GOOD) == []
    assert missed({**GOOD, name: value}) == [f"{name} is {value!r}, not {GOOD[name]!r}"]


class Told:
    """Traffic that sends nothing, before comparisons that say what was planned."""

    env: dict[str, str] = {}

    def __init__(self) -> None:
        self.sent: list[int] = []

    def days(self, _title: str, _url: str, count: int) -> None:
        """Note how many days were sent."""
        self.sent.append(count)


def test_a_hold_is_looked_at_again_and_a_reject_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = [{"verdict": "hold", "reasons": ["too early"]}, {"verdict": "reject", "reasons": ["it ranks worse"]}]
    monkeypatch.setattr("deploy.demo_promotion.step", lambda *_: planned.pop(0))
    traffic: Any = Told()

    with pytest.raises(DemoFailed, match="the campaign ended in reject, not promote: it ranks worse"):
        rehearsed(traffic, "http://127.0.0.1:1", 10)

    assert traffic.sent == [10, 5]
