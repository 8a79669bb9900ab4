"""A split on a running service: both arms answer, keys stay in theirs, and the treated model may die unnoticed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from monitoring.compare import compare
from monitoring.compare_job import open_logs
from monitoring.pairing import FIRST
from monitoring.split_job import gather
from service.roles import move_roles, read_roles
from service.split import Split
from service.split_file import move_split, read_split
from tests.bundle import NOW, REQUEST, make_bundle
from tests.serving import Served, served

pytestmark = pytest.mark.slow

KEYS = [f"N{i:05d}" for i in range(60)]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served bundle, half of whose planes are treated."""
    folder = tmp_path_factory.mktemp("split")
    with served(make_bundle(folder), folder) as live:
        open_split(live)
        yield live


def open_split(live: Served, name: str = "live") -> None:
    """Treat half of the keys, and wait until the gateway knows."""
    models = live.bundle.settings.models_dir
    seats = read_roles(models).seats
    declared = Split(
        name, "shadow", "tailnum", 0.5, seats["primary"].digest, seats["shadow"].digest, "label", "lower", 86400, NOW
    )
    move_split(models, read_split(models).revision, declared, at=NOW)
    live.wait_until(lambda: {"shadow", "primary"} <= {a["role"] for a in ask(live)})


def ask(live: Served) -> list[dict[str, Any]]:
    """One request of every key."""
    status, answers = live.post("/predict_batch", [{**REQUEST, "tailnum": key} for key in KEYS])
    assert status == 200
    return [*answers]


def roles(live: Served) -> dict[str, str]:
    """Who answers each key."""
    return {key: answer["role"] for key, answer in zip(KEYS, ask(live), strict=True)}


def test_both_arms_answer_and_a_key_stays_in_its_arm(split: Served) -> None:
    first, second = roles(split), roles(split)

    assert set(first.values()) == {"primary", "shadow"}
    assert first == second
    logged = [r for r in split.records("predictions") if r["arm"] is not None]
    assert {(r["arm"], r["role"]) for r in logged} == {("control", "primary"), ("treatment", "shadow")}
    assert len({(r["request"]["tailnum"], r["arm"]) for r in logged}) == len(KEYS)
    assert split.series("understudy_split_total") == len(logged)


def test_what_the_service_writes_is_what_the_judges_read(split: Served) -> None:
    ask(split)
    settings = split.bundle.settings
    logged = [r for r in split.records("predictions") if r["arm"] is not None]
    contract = split.bundle.contract

    found = gather(settings.log_dir, settings.models_dir, contract, NOW + timedelta(days=9), maturity=timedelta(days=1))
    beside = compare(open_logs(settings.log_dir, contract).of(FIRST), contract)

    assert (found.requests, found.drawn, found.wrong_arms) == (len(logged), len(KEYS), 0)
    assert [guard.own == guard.requests > 0 for guard in found.guards] == [True, True]
    assert beside.ledger.sampled == sum(r["shadow_sampled"] for r in split.records("predictions"))
    assert beside.roles["shadow"] == sum(r["arm"] == "treatment" for r in logged)


def test_everybody_is_answered_while_the_treated_models_process_is_dead(split: Served) -> None:
    before = roles(split)
    treated = {key for key, role in before.items() if role == "shadow"}
    pid = split.process("shadow")

    os.kill(pid, signal.SIGSTOP)
    try:
        during = roles(split)
    finally:
        os.kill(pid, signal.SIGKILL)
    split.wait_until(lambda: roles(split) == before)

    assert set(during.values()) == {"primary"}
    orphaned = [r for r in split.records("predictions") if r["arm"] == "treatment" and r["role"] == "primary"]
    assert {r["request"]["tailnum"] for r in orphaned} >= treated
    assert {r["fallback_reason"] for r in orphaned} <= {
        "shadow_timeout", "shadow_error", "shadow_circuit_open", "shadow_absent",
    }  # fmt: skip


def test_a_move_of_the_roles_ends_the_split_by_itself(split: Served) -> None:
    models = split.bundle.settings.models_dir
    before = read_roles(models)

    moved = move_roles(models, before.revision, {"shadow": before.seats["fallback"]})
    split.wait_until(lambda: set(roles(split).values()) == {"primary"})
    ask(split)
    last = split.records("predictions")[-1]
    move_roles(models, moved.revision, dict(before.seats))

    assert last["arm"] is None
    split.wait_until(lambda: "shadow" in roles(split).values())
