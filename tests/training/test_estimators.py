"""Every estimator: the same model twice, the same scores packaged as fitted, contributions that add up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from service.package import Signature, load_package, save_package
from service.roles import ROLES, load_role, read_roles
from service.settings import ROOT
from tests.bundle import SAMPLE, TOYS, settings_in
from training import estimator, register
from training.estimators import FITTERS, sampled_contributions
from training.fitting import Fitted

WIDTH, CATEGORICAL = 6, [2, 5]


def table(rows: int = 3000) -> tuple[Any, Any]:
    """Numbers, two of them codes; gaps everywhere, one column all gap; the first column and one code matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH))
    x[:, 2], x[:, 5] = rng.integers(0, 5, rows), rng.integers(0, 12, rows)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[:, 4] = np.nan
    odds = 2 * np.nan_to_num(x[:, 0]) + 2 * (x[:, 2] == 2)
    return x, (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(float)


X, Y = table()


def signature(form: str) -> Signature:
    """A signature that fits the table."""
    names = tuple(f"f{j}" for j in range(WIDTH))
    words = {f"f{j}": tuple(str(code) for code in range(12)) for j in CATEGORICAL}
    return Signature(form, "primary", "", names, words, "probability", 0.5)


def named(x: Any) -> list[dict[str, Any]]:
    """Encoded rows as a service gets them: names and words."""
    return [
        {f"f{j}": None if np.isnan(v) else str(int(v)) if j in CATEGORICAL else float(v) for j, v in enumerate(row)}
        for row in x
    ]


@pytest.mark.parametrize("name", sorted(FITTERS))
def test_a_packaged_model_scores_as_the_fitted_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []

    def remembering(original: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            fitted.append(original(*args, **more))
            return fitted[-1]

        return call

    for owner, method in ((lightgbm, "train"), (xgboost, "train"), (Pipeline, "fit")):
        monkeypatch.setattr(owner, method, remembering(getattr(owner, method)))
    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", remembering(HistGradientBoostingClassifier.fit))
    trained = FITTERS[name](TOYS[name], X, Y, CATEGORICAL, 7)
    digest, folder = save_package(tmp_path, trained.content, signature(trained.format), {}, {}, {}, SAMPLE)

    packaged = load_package(folder, "1", digest).score(named(X))

    native = fitted[-1]
    if isinstance(native, xgboost.Booster):
        expected = native.predict(xgboost.DMatrix(X))
    else:
        expected = native.predict(X) if hasattr(native, "num_trees") else native.predict_proba(X)[:, 1]
    np.testing.assert_allclose(packaged, expected, rtol=0, atol=1e-5 if trained.format == "onnx" else 1e-12)
    np.testing.assert_allclose(packaged, trained.predict(X), rtol=0, atol=1e-6 if trained.format == "onnx" else 1e-15)


@pytest.mark.parametrize("name", sorted(FITTERS))
def test_a_category_or_gap_never_seen_is_scored(name: str) -> None:
    trained = FITTERS[name](TOYS[name], np.nan_to_num(X), Y, CATEGORICAL, 7)

    scores = trained.predict(np.full((2, WIDTH), np.nan))

    assert ((scores > 0) & (scores < 1)).all()


def digests() -> dict[str, str]:
    """SHA-256 of every estimator's model of the table."""
    return {n: hashlib.sha256(f(TOYS[n], X, Y, CATEGORICAL, 7).content).hexdigest() for n, f in FITTERS.items()}


def test_the_same_training_gives_the_same_bytes_in_another_process() -> None:
    code = "import json; from tests.training.test_estimators import digests; print(json.dumps(digests()))"
    here = digests()
    for hash_seed in ("1", "5"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout.splitlines()[-1]) == here
    assert digests() == here


def log_odds(p: Any) -> Any:
    """Log-odds of probabilities."""
    return np.log(p / (1 - p))


@pytest.mark.parametrize("name", sorted(set(FITTERS) - {"hist_gradient"}))
def test_exact_contributions_add_up_to_the_log_odds(name: str) -> None:
    trained = FITTERS[name](TOYS[name], X, Y, CATEGORICAL, 7)

    found = trained.contributions(X[:300])

    assert found.shape == (300, WIDTH)
    rest = log_odds(trained.predict(X[:300])) - found.sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-4)
    assert np.abs(found).mean(axis=0).argmax() == 0


def test_linear_contributions_are_none_for_the_average_row() -> None:
    trained = FITTERS["logistic"](TOYS["logistic"], X, Y, CATEGORICAL, 7)

    np.testing.assert_allclose(trained.contributions(X).mean(axis=0), 0, atol=1e-9)


def test_sampled_contributions_come_near_the_exact_ones() -> None:
    trained = FITTERS["logistic"](TOYS["logistic"], X, Y, CATEGORICAL, 7)
    exact = trained.contributions(X[:200])

    found = sampled_contributions(trained.predict, X[::3], 7, rounds=200)(X[:200])

    np.testing.assert_allclose(found, exact, atol=0.6)
    np.testing.assert_allclose(np.abs(found).mean(axis=0), np.abs(exact).mean(axis=0), atol=0.05)
    np.testing.assert_array_equal(found, sampled_contributions(trained.predict, X[::3], 7, rounds=200)(X[:200]))


def test_boosting_without_an_exact_method_says_that_it_sampled() -> None:
    trained = FITTERS["hist_gradient"](TOYS["hist_gradient"], X, Y, CATEGORICAL, 7)

    found = np.abs(trained.contributions(X[:200])).mean(axis=0)

    assert trained.explained_by == "sampled"
    assert (found.argmax(), found[4]) == (0, 0)


def test_every_estimator_has_parameters_for_every_role() -> None:
    for role in ROLES:
        assert estimator.ESTIMATOR[role] in FITTERS
        for name in FITTERS:
            assert estimator.parameters(role, name)


def test_a_role_is_fitted_with_its_own_estimator_unless_told_otherwise() -> None:
    own, other = (estimator.fit("fallback", X, Y, CATEGORICAL, 7, name) for name in ("", "xgboost"))

    assert (own.format, other.format) == ("lightgbm", "xgboost")


def fitted_as(name: str) -> Fitted:
    """What a training hands to the registry."""
    trained = FITTERS[name](TOYS[name], X, Y, CATEGORICAL, 7)
    described = {"predictions": {"mean": 0.5, "std": 0.1, "median": 0.5}}
    return Fitted(
        "primary", name, TOYS[name], trained.content, signature(trained.format), described, {"auc": 0.5}, {}, SAMPLE,
        len(X), X[:3],
    )  # fmt: skip


RECORD = {"as_of": "2013-01-01", "seed": 7, "data_digest": "", "estimator": "", "parameters": {}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xgboost", "logistic", "logistic_onnx", "hist_gradient"])
def test_a_logged_model_loads_plainly_and_scores_as_the_fitted_one(name: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    register.connect(settings)
    fitted = fitted_as(name)

    logged = register.log_model(fitted, RECORD, "digest")

    model = mlflow.pyfunc.load_model(logged.model_uri)
    frame = pd.DataFrame(X[:50], columns=list(fitted.signature.features))
    expected = FITTERS[name](TOYS[name], X, Y, CATEGORICAL, 7).predict(X[:50])
    np.testing.assert_allclose(model.predict(frame), expected, rtol=0, atol=1e-12)
    files = [p for p in (settings.state_dir / "mlruns").rglob("*") if p.is_file()]
    assert files
    assert [p for p in files if p.suffix in {".pkl", ".pickle"} or p.read_bytes()[:1] == b"\x80"] == []


@pytest.mark.slow
def test_a_logged_model_needs_nothing_of_this_tree(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    register.connect(settings)
    fitted = fitted_as("logistic")
    logged = register.log_model(fitted, RECORD, "digest")
    code = (
        "import sys, mlflow, pandas; mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model(sys.argv[2])\n"
        "print(float(model.predict(pandas.DataFrame([[0.0] * 6], columns=[f'f{j}' for j in range(6)]))[0]))"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("MLFLOW_")}
    command = [sys.executable, "-c", code, mlflow.get_tracking_uri(), logged.model_uri]

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    expected = FITTERS["logistic"](TOYS["logistic"], X, Y, CATEGORICAL, 7).predict(np.zeros((1, WIDTH)))[0]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_a_training_with_another_estimator_seats_it_twice_the_same(raw_folder: Path, tmp_path: Path) -> None:
    seats = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        env = {
            **os.environ,
            "UNDERSTUDY_STATE_DIR": str(folder / "state"),
            "UNDERSTUDY_MODELS_DIR": str(folder / "models"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "training.train", "--as-of", "2013-03-01", "--raw", str(raw_folder)]
        command += ["--role", "primary", "--estimator", "logistic"]
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
        seats.append(read_roles(folder / "models").seats)

    model = load_role(tmp_path / "a" / "models", "primary")
    record = json.loads((tmp_path / "a" / "models" / seats[0]["primary"].package / "record.json").read_text())
    assert seats[0] == seats[1]
    assert (model.signature.format, record["estimator"]) == ("sklearn", "logistic")
    assert record["parameters"] == estimator.parameters("primary", "logistic")
