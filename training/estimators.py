"""Fitting adapters: numbers in, a model in its library's own format out. ``estimator.py`` chooses among them.

The same arguments give the same bytes. Everything runs on one thread: the order of summation, and with it the last
bits of a model, depends on the number of threads. And one is fastest where a core may be busy: two threads on two
cores with one busy took 52 s for what one did in 8 (lightgbm 4.7 with GNU OpenMP, whose threads wait by spinning).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from service.models import Matrix, Score, open_model


@dataclass(frozen=True)
class Trained:
    """A fitted model.

    Attributes:
        format: one of ``service.models.FORMATS``.
        content: the model in that format.
        predict: what the service will make of ``content``, so that what is evaluated is what will answer.
        contributions: rows to what each feature adds to the log-odds (rows x features), against an average row.
        explained_by: how: ``tree_shap`` and ``linear`` are exact, ``sampled`` is an estimate.
    """

    format: str
    content: bytes
    predict: Score
    contributions: Score
    explained_by: str


Fitter = Callable[[Mapping[str, Any], Matrix, Matrix, Sequence[int], int], Trained]


def lightgbm(parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int) -> Trained:
    """LightGBM's boosted trees; ``rounds`` is the number of trees."""
    import lightgbm

    own = {"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1, **parameters, "seed": seed}
    rounds = own.pop("rounds")
    data = lightgbm.Dataset(x, y, categorical_feature=list(categorical), params={"verbose": -1})
    booster = lightgbm.train(own, data, num_boost_round=rounds)

    def contributions(rows: Matrix) -> Matrix:
        # The last column is the average row.
        return np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1)[:, :-1], dtype=np.float64)

    return _trained("lightgbm", booster.model_to_string().encode(), x.shape[1], contributions, "tree_shap")


def xgboost(parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int) -> Trained:
    """XGBoost's boosted trees; ``rounds`` is the number of trees."""
    import xgboost

    own = {"tree_method": "hist", "nthread": 1, "verbosity": 0, **parameters, "seed": seed}
    rounds = own.pop("rounds")
    types = ["c" if j in categorical else "q" for j in range(x.shape[1])]
    data = xgboost.DMatrix(x, y, feature_types=types, enable_categorical=True, nthread=1)
    booster = xgboost.train(own, data, num_boost_round=rounds)

    def contributions(rows: Matrix) -> Matrix:
        table = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True, nthread=1)
        return np.asarray(booster.predict(table, pred_contribs=True)[:, :-1], dtype=np.float64)

    return _trained("xgboost", bytes(booster.save_raw("ubj")), x.shape[1], contributions, "tree_shap")


def logistic(parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int) -> Trained:
    """scikit-learn's logistic regression on imputed, scaled numbers and one-hot categories."""
    pipeline = _logistic_pipeline(parameters, x, y, categorical, seed)
    contributions = _linear_contributions(pipeline, x, categorical)
    return _trained("sklearn", _skops(pipeline), x.shape[1], contributions, "linear")


def logistic_onnx(
    parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int
) -> Trained:
    """:func:`logistic`, kept as ONNX: served without scikit-learn, in single precision."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    pipeline = _logistic_pipeline(parameters, x, y, categorical, seed)
    takes = [("x", FloatTensorType([None, x.shape[1]]))]
    # The operator set is fixed for runtimes older than the converter.
    model = to_onnx(pipeline, initial_types=takes, options={"zipmap": False}, target_opset=21)
    # skl2onnx 1.20 keeps them in a set.
    model.opset_import.sort(key=lambda used: used.domain)
    contributions = _linear_contributions(pipeline, x, categorical)
    return _trained("onnx", model.SerializeToString(deterministic=True), x.shape[1], contributions, "linear")


def hist_gradient(
    parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int
) -> Trained:
    """scikit-learn's histogram gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    # Stopping early would hold back rows at random, later ones than those it learns from among them.
    model = HistGradientBoostingClassifier(
        **{"early_stopping": False, **parameters}, categorical_features=list(categorical), random_state=seed
    )
    # A column without any value ends the binning in an error (scikit-learn 1.9).
    filled = np.where(np.isnan(x).all(axis=0), 0.0, x)
    with threadpool_limits(1):
        model.fit(filled, y)
    trained = _trained("sklearn", _skops(model), x.shape[1], np.zeros_like, "sampled")
    return replace(trained, contributions=sampled_contributions(trained.predict, x[evenly(len(x), 1000)], seed))


FITTERS: Mapping[str, Fitter] = {
    "lightgbm": lightgbm,
    "xgboost": xgboost,
    "logistic": logistic,
    "logistic_onnx": logistic_onnx,
    "hist_gradient": hist_gradient,
}


def evenly(length: int, count: int) -> npt.NDArray[np.intp]:
    """At most ``count`` positions, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, min(count, length)).astype(np.intp)


def sampled_contributions(predict: Score, background: Matrix, seed: int, rounds: int = 16) -> Score:
    """Shapley values in log-odds by sampling: a background row turns into the row, feature by feature at random.

    For models no exact method is at hand for: the package ``shap`` wants numba, which has no release for
    numpy 2.4 on Python 3.11.
    """

    def log_odds(rows: Matrix) -> Matrix:
        p = np.clip(predict(rows), 1e-12, 1 - 1e-12)
        return np.asarray(np.log(p / (1 - p)), dtype=np.float64)

    def contributions(rows: Matrix) -> Matrix:
        rng = np.random.default_rng(seed)
        found = np.zeros(rows.shape)
        for _ in range(rounds):
            mixed = background[rng.integers(0, len(background), len(rows))]
            before = log_odds(mixed)
            for j in rng.permutation(rows.shape[1]):
                mixed[:, j] = rows[:, j]
                after = log_odds(mixed)
                found[:, j] += (after - before) / rounds
                before = after
        return found

    return contributions


def _trained(form: str, content: bytes, width: int, contributions: Score, explained_by: str) -> Trained:
    return Trained(form, content, open_model(form, content, width), contributions, explained_by)


def _logistic_pipeline(
    parameters: Mapping[str, Any], x: Matrix, y: Matrix, categorical: Sequence[int], seed: int
) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from threadpoolctl import threadpool_limits

    numeric = [j for j in range(x.shape[1]) if j not in categorical]
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    # Missing is a category of its own; one that fitting never saw adds nothing.
    codes = make_pipeline(
        SimpleImputer(strategy="constant", fill_value=-1, keep_empty_features=True),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    parts = [("numbers", numbers, numeric), ("codes", codes, list(categorical))]
    columns = ColumnTransformer([part for part in parts if part[2]])
    with threadpool_limits(1):
        return make_pipeline(columns, LogisticRegression(**parameters, random_state=seed)).fit(x, y)


def _linear_contributions(pipeline: Any, x: Matrix, categorical: Sequence[int]) -> Score:
    """Exact: coefficient times distance from the mean, summed over the columns a feature was spread over."""
    columns, weights = pipeline[:-1], pipeline[-1].coef_[0]
    mean = columns.transform(x).mean(axis=0)
    owners = [j for j in range(x.shape[1]) if j not in categorical]
    if categorical:
        found = pipeline[0].named_transformers_["codes"][-1].categories_
        owners += [j for j, values in zip(categorical, found, strict=True) for _ in values]
    spread = np.zeros((len(owners), x.shape[1]))
    spread[range(len(owners)), owners] = weights
    return lambda rows: np.asarray((columns.transform(rows) - mean) @ spread, dtype=np.float64)


def _skops(model: Any) -> bytes:
    """A model as a skops file whose bytes depend on the model only.

    skops 0.16 names objects by their address in memory and stamps its zip entries with the time.
    """
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema, arrays = json.loads(files.pop("schema.json")), dict[str, str]()
    _renumber(schema, {}, arrays)
    contents = {"schema.json": json.dumps(schema).encode(), **{new: files[old] for old, new in arrays.items()}}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def _renumber(node: Any, ids: dict[int, int], arrays: dict[str, str]) -> None:
    """Number objects and array files in the order they are met, in place."""
    if isinstance(node, dict):
        if "__id__" in node:
            node["__id__"] = ids.setdefault(node["__id__"], len(ids) + 1)
            # Which equal numbers and texts are one object is up to the interpreter.
            if node["__loader__"] == "JsonNode":
                del node["__id__"]
        if node.get("__loader__") == "NdArrayNode" and "file" in node:
            node["file"] = arrays.setdefault(node["file"], f"{len(arrays) + 1}.npy")
        for value in node.values():
            _renumber(value, ids, arrays)
    elif isinstance(node, list):
        for value in node:
            _renumber(value, ids, arrays)
