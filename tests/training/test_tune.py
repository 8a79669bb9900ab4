"""The search: folds in the order of time, the same answer for the same budget, nothing changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from service.clock import parse_instant
from service.contract import Contract, FieldSpec
from service.roles import read_roles
from service.settings import ROOT
from tests.bundle import settings_in
from training import estimator, tune
from training.estimators import FITTERS
from training.tune import SPACES, Fold, folds, mean_auc, search

CONTRACT = Contract("toy", (), (), (), (), (FieldSpec("x", "float"), FieldSpec("c", "str")))
AT = parse_instant("2020-06-01")
SOME: dict[str, Any] = {"C": 1e-4, "max_iter": 200}


def frame(days: int = 150) -> pd.DataFrame:
    """Forty rows a day up to a moment, each known an hour later; the last day has a word of its own."""
    rng = np.random.default_rng(1)
    times = pd.date_range(end=pd.Timestamp(AT) - pd.Timedelta("1h"), periods=40 * days, freq="36min")
    x, words = rng.normal(size=len(times)), np.array(rng.choice(["a", "b"], len(times)), dtype=object)
    words[-40:] = "new"
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "label_known_at": times + pd.Timedelta("1h"),
            "x": x,
            "c": words,
            "label": (x + rng.normal(size=len(times)) > 0).astype(int),
        }
    )


def small_folds() -> list[Fold]:
    """Two folds of little data."""
    return folds(frame(), CONTRACT, AT, count=2)


def test_a_fold_is_scored_on_what_came_after_everything_it_is_fitted_on() -> None:
    rows = frame().assign(x=np.arange(6000.0))

    made = folds(rows, CONTRACT, AT)

    assert len(made) == 3
    for number, fold in enumerate(made):
        end = pd.Timestamp(AT) - number * pd.Timedelta("28d")
        before, after = fold.x[:, 0].max(), fold.later_x[:, 0]
        assert rows["label_known_at"].iloc[int(before)] < end - pd.Timedelta("28d")
        assert rows["event_timestamp"].iloc[int(after.min())] >= end - pd.Timedelta("28d")
        assert rows["event_timestamp"].iloc[int(after.max())] < end
        assert len(after) == 1120 or number == 0
    # A word of the newest fold's last day is not in the vocabulary of what was known before.
    assert np.isnan(made[0].later_x[-1, 1])


def test_stretches_with_too_little_before_them_are_left_out() -> None:
    assert len(folds(frame(60), CONTRACT, AT)) == 1


def test_the_same_trials_and_seed_find_the_same_and_another_seed_other_parameters() -> None:
    parts = small_folds()

    one, two = (search(parts, "logistic", SOME, 4, None, 7) for _ in range(2))
    other = search(parts, "logistic", SOME, 4, None, 8)

    assert one == two
    assert one["best"]["C"] != other["best"]["C"]
    assert (one["trials"], one["folds"], one["best"]["max_iter"]) == (4, 2, 200)


def test_what_is_found_is_told_beside_what_is() -> None:
    parts = small_folds()
    current = {"C": 1e-4, "max_iter": 200}

    found = search(parts, "logistic", current, 3, None, 7)

    assert found["current_auc"] == round(mean_auc(parts, "logistic", current, 7), 4)
    assert found["best_auc"] == round(mean_auc(parts, "logistic", found["best"], 7), 4)
    assert found["better"] == (found["best_auc"] > found["current_auc"])


@pytest.mark.parametrize(("trials", "seconds"), [(0, None), (1000, 1e-9)])
def test_without_time_for_a_trial_the_current_parameters_stay(trials: int, seconds: float | None) -> None:
    found = search(small_folds(), "logistic", SOME, trials, seconds, 7)

    assert (found["best"], found["better"]) == (SOME, False)


def test_no_trial_begins_after_the_time() -> None:
    found = search(small_folds(), "logistic", SOME, 10_000, 0.5, 7)

    assert 1 <= found["trials"] < 1000


@pytest.mark.parametrize("name", sorted(FITTERS))
def test_every_estimator_can_be_searched(name: str) -> None:
    part = small_folds()[0]
    quick = {**estimator.parameters("primary", name)}

    found = search(
        [Fold(part.x[:500], part.y[:500], part.categorical, part.later_x, part.later_y)], name, quick, 1, None, 7
    )

    assert set(found["best"]) >= set(quick)
    assert found["estimator"] == name
    assert name in SPACES


@pytest.mark.slow
def test_the_command_prints_the_search_and_changes_nothing(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    before = hashlib.sha256((ROOT / "training/estimator.py").read_bytes()).hexdigest()
    monkeypatch.setattr(tune, "settings", lambda: settings_in(prepared.state_dir.parent))
    monkeypatch.setattr(tune, "prepare", lambda _: None)

    code = tune.main(["--as-of", "2013-03-01", "--role", "fallback", "--estimator", "logistic", "--trials", "2"])

    printed = capsys.readouterr().out.splitlines()
    found = json.loads(printed[-1])
    assert code == 0
    assert (found["estimator"], found["trials"]) == ("logistic", 2)
    assert "C = " in "\n".join(printed)
    assert hashlib.sha256((ROOT / "training/estimator.py").read_bytes()).hexdigest() == before
    assert read_roles(prepared.models_dir).seats == {}
