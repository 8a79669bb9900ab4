"""The gate: what passes, what each planted fault is refused for, and what a refusal leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo import features as definitions
from service.clock import parse_instant
from service.definitions import contracts
from service.models import open_model
from service.package import PackagedModel
from service.roles import Role, read_roles
from service.settings import Settings
from tests.bundle import seat_model, settings_in
from training import estimator, gate_measure
from training import train as train_module
from training.dataset import join_features
from training.fitting import Fitted, fit_role, known_rows
from training.gate import GateRefused
from training.gate_measure import Incumbent, find_incumbent, measure
from training.gate_rules import LIMITS, Check, Limits, decide
from training.store import apply, open_store
from training.train import train

pytestmark = pytest.mark.slow
AT = parse_instant("2013-03-01")
LATER = parse_instant("2013-03-31")
Change = Callable[[pd.DataFrame], "pd.Series[float]"]


def fit(settings: Settings, role: Role, at: Any) -> Fitted:
    """Fit a role's model as a training does."""
    store = open_store(settings)
    apply(store, settings)
    rows = known_rows(pd.read_parquet(settings.state_dir / "rows.parquet"), at)
    contract = contracts(definitions)[estimator.FEATURE_SERVICE[role]]
    return fit_role(role, join_features(store, rows, contract), contract, at, 7)


@pytest.fixture(scope="module")
def older(prepared: Settings) -> Fitted:
    """A primary as of the first of March."""
    return fit(prepared, "primary", AT)


@pytest.fixture(scope="module")
def newer(prepared: Settings) -> Fitted:
    """A candidate thirty days younger: nothing it is judged on was known to the older one."""
    return replace(fit(prepared, "primary", LATER), role="shadow")


def seated(fitted: Fitted, until: Any = AT) -> Incumbent:
    """The model as an incumbent."""
    score = open_model(fitted.signature.format, fitted.model, len(fitted.signature.features))
    counts = tuple(fitted.baseline["predictions"]["counts"])
    return Incumbent("primary version 1", PackagedModel("1", "d", fitted.signature, score), until, counts)


def failed(fitted: Fitted, incumbent: Incumbent | None) -> dict[str, Check]:
    """The checks a candidate does not pass, by name."""
    limits = LIMITS[fitted.role]
    return {c.name: c for c in decide(measure(fitted, incumbent, limits), limits) if not c.passed}


def answering(fitted: Fitted, change: Change) -> Fitted:
    """The candidate, had its evaluated model answered otherwise."""
    return replace(fitted, holdout=fitted.holdout.assign(score=change(fitted.holdout)))


def tilted(frame: pd.DataFrame) -> pd.Series[float]:
    """Every answer's odds more than doubled."""
    odds = frame["score"] / (1 - frame["score"]) * 2.5
    return odds / (1 + odds)


def test_an_honest_candidate_passes_against_a_primary_that_has_not_seen_its_evaluation(
    older: Fitted, newer: Fitted
) -> None:
    limits = LIMITS["shadow"]

    found = measure(newer, seated(older), limits)

    assert [c.message for c in decide(found, limits) if not c.passed] == []
    assert found.against is not None
    assert found.against.rows == found.rows > 20_000
    assert found.notes == ()
    names = {part.name.partition("=")[0] for part in found.slices}
    assert names == {"carrier", "origin", "dep_hour", "dep_weekday"}


def test_a_first_model_is_held_against_absolute_limits_only(older: Fitted) -> None:
    found = measure(older, None, Limits())

    checks = decide(found, Limits())

    assert all(c.passed for c in checks)
    assert not [c.name for c in checks if c.name.startswith(("worse", "shift", "baseline"))]


@pytest.mark.parametrize(("days", "fair"), [(0, False), (14, False), (28, True), (60, True)])
def test_quality_is_compared_only_with_an_incumbent_that_learned_nothing_of_the_evaluation_weeks(
    days: int, fair: bool, older: Fitted, newer: Fitted
) -> None:
    found = measure(newer, seated(older, LATER - timedelta(days=days)), Limits())

    assert found.against is not None
    assert (found.against.worse_auc is not None) == fair
    assert any("its quality is not compared" in note for note in found.notes) != fair
    assert {part.worse_log_loss is not None for part in found.slices} == {fair}


PLANTED: Mapping[str, tuple[Change, set[str]]] = {
    "constant": (lambda f: f["score"] * 0 + f["label"].mean(), {"spread", "auc", "worse_auc", "refit_psi"}),
    "scrambled": (
        lambda f: pd.Series(np.random.default_rng(0).permutation(f["score"]), f.index),
        {"auc", "excess", "worse_auc", "worse_log_loss"},
    ),
    "one slice": (
        lambda f: f["score"].where(f["carrier"] != "UA", 0.9),
        {"excess[carrier=UA]", "worse_log_loss[carrier=UA]", "worse_auc[carrier=UA]"},
    ),
    "an hour nobody tagged": (
        lambda f: f["score"].where(f["dep_hour"] != 8, 1 - f["score"]),
        {"excess[dep_hour=8]", "worse_log_loss[dep_hour=8]", "worse_auc[dep_hour=8]"},
    ),
    "shifted": (tilted, {"shift_psi", "refit_psi", "worse_log_loss", "ece"}),
    "overconfident": (lambda f: f["score"].round(), {"ece", "excess", "shift_psi", "baseline_psi"}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_refused_for_what_it_is(fault: str, older: Fitted, newer: Fitted) -> None:
    change, reasons = PLANTED[fault]

    found = failed(answering(newer, change), seated(older))

    assert reasons <= set(found)
    for check in found.values():
        assert f"{check.value:.4g}" in check.message
        assert f"{check.direction} {check.limit:.4g}" in check.message


def test_a_slice_that_only_one_of_two_hundred_rows_belongs_to_is_not_judged_by_itself(newer: Fitted) -> None:
    few = newer.holdout.assign(carrier=np.where(np.arange(len(newer.holdout)) % 200 == 0, "ZZ", "UA"))

    found = measure(replace(newer, holdout=few), None, Limits())

    assert [s.name for s in found.slices if s.name.startswith("carrier")] == ["carrier=UA"]


def test_a_much_slower_model_is_refused_beside_the_incumbent_and_alone(
    older: Fitted, newer: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    incumbent = seated(older)

    def slow(name: str, content: bytes, width: int) -> Any:
        score = open_model(name, content, width)
        # By scoring a row many times over, as a thousand times larger a model would.
        return lambda x: score(np.repeat(x, 4000, axis=0))[: len(x)] if len(x) == 1 else score(x)

    monkeypatch.setattr(gate_measure, "open_model", slow)

    beside, alone = failed(newer, incumbent), failed(newer, None)

    assert set(beside) == set(alone) == {"latency_ms"}
    assert "primary version 1 takes" in beside["latency_ms"].message
    assert beside["latency_ms"].limit == LIMITS["shadow"].quick_ms
    assert alone["latency_ms"].limit == LIMITS["shadow"].slow_ms


@pytest.mark.parametrize("answer", [np.nan, np.inf, -0.1, 1.1])
def test_answers_that_are_no_probability_are_refused_for_that_alone(
    answer: float, prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_plainly = estimator.fit

    def broken(*arguments: Any) -> Any:
        trained = fit_plainly(*arguments)
        return replace(trained, predict=lambda x: np.where(np.arange(len(x)) % 7 == 0, answer, trained.predict(x)))

    monkeypatch.setattr(estimator, "fit", broken)

    found = failed(fit(prepared, "fallback", AT), None)

    assert set(found) == {"unusable_answers"}
    assert found["unusable_answers"].value > 3000


def test_a_tagged_or_seated_package_that_says_little_is_no_reason_to_stop(tmp_path: Path, newer: Fitted) -> None:
    settings = settings_in(tmp_path)
    assert find_incumbent(settings.models_dir, "shadow") == (None, "nobody plays primary: absolute limits only")
    seat = seat_model(settings, "primary", seed=1)

    incumbent, missing = find_incumbent(settings.models_dir, "shadow")
    found = measure(newer, incumbent, Limits())

    assert missing == ""
    assert found.notes == ("primary version 1 does not say until when it learned: its quality is not compared",)
    assert found.against is not None
    assert found.against.baseline_psi is None
    (settings.models_dir / seat.package / "model.txt").write_text("tree")
    assert "absolute limits only" in find_incumbent(settings.models_dir, "shadow")[1]


def test_a_refusal_leaves_registry_roles_and_packages_and_a_reason_passes_it(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.register import connect

    settings = settings_in(tmp_path)
    monkeypatch.setattr(train_module, "settings", lambda: settings)
    fit_plainly = estimator.fit

    def scrambled(role: Role, x: Any, y: Any, *rest: Any) -> Any:
        return fit_plainly(role, x, np.random.default_rng(0).permutation(y), *rest)

    monkeypatch.setattr(estimator, "fit", scrambled)
    command = ["--as-of", "2013-03-01", "--role", "fallback", "--raw", str(raw_folder)]

    assert train_module.main(command) == 2

    told = capsys.readouterr().err
    assert "the gate refused fallback" in told
    assert "auc is 0." in told
    assert "(at least 0.58)" in told
    assert "--force-gate --reason" in told
    written = json.loads((settings.state_dir / "gate/fallback-2013-03-01T0000.json").read_text())
    assert not written["passed"]
    assert "auc" in {c["name"] for c in written["checks"] if not c["passed"]}
    assert not settings.models_dir.exists()
    assert list(connect(settings).search_registered_models()) == []

    assert train_module.main([*command, "--force-gate", "--reason", "a rehearsal"]) == 0

    seat = read_roles(settings.models_dir).seats["fallback"]
    record = json.loads((settings.models_dir / seat.package / "record.json").read_text())
    assert record["gate_passed_over"] == "a rehearsal"
    assert "passed over (a rehearsal): auc" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--force-gate"], ["--reason", "because"], ["--force-gate", "--reason", " "]])
def test_the_gate_is_passed_over_only_with_a_reason(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        train_module.main(["--as-of", "2013-03-01", *options])


def test_a_refused_shadow_leaves_the_seated_primary(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    train(settings, AT, "auto", 7, print, raw_folder)
    roles, packages = read_roles(settings.models_dir), sorted((settings.models_dir / "packages").iterdir())
    monkeypatch.setitem(LIMITS, "shadow", Limits(auc=0.99))

    with pytest.raises(GateRefused) as refused:
        train(settings, LATER, "shadow", 7, print, raw_folder)

    assert [check.name for check in refused.value.failed] == ["auc"]
    assert read_roles(settings.models_dir) == roles
    assert sorted((settings.models_dir / "packages").iterdir()) == packages
