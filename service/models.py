"""Model formats: bytes in, a scoring function out. Nothing is unpickled; a library is imported when a model needs it.

Every format scores with one thread: a service scores few rows at a time and several runners share the machine.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import PackageError
from service.lean import without

Matrix = npt.NDArray[np.float64]
# Encoded rows (rows x features, missing as NaN) to one probability per row.
Score = Callable[[Matrix], Matrix]

# What a skops file may be made of, functions included. It has to be here in full: the default list of skops 0.16
# holds every estimator and ufunc there is. skops leaves TreePredictor out, whose indices scikit-learn follows
# unchecked; what such a file could do is end its runner, and the digest of the package is checked before.
SKOPS_TYPES = frozenset(
    {
        "builtins.dict", "builtins.int", "builtins.list", "builtins.slice", "builtins.str", "builtins.tuple",
        "functools.partial", "numpy.dtype", "numpy.float64", "numpy.int64", "numpy.ndarray",
        "numpy.random._generator.Generator", "numpy.uint64",
        "sklearn._loss._loss.CyHalfBinomialLoss", "sklearn._loss.link.Interval", "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn.compose._column_transformer.ColumnTransformer",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.impute._base.SimpleImputer", "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.pipeline.Pipeline", "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._encoders.OneHotEncoder", "sklearn.preprocessing._encoders.OrdinalEncoder",
        "sklearn.preprocessing._function_transformer.FunctionTransformer",
        "sklearn.preprocessing._label.LabelEncoder", "sklearn.utils.validation.check_array",
    }
)  # fmt: skip
# How skops may build them.
SKOPS_LOADERS = frozenset(
    {
        "DTypeNode", "DictNode", "FunctionNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode",
        "PartialNode", "RandomGeneratorNode", "SliceNode", "TupleNode", "TypeNode",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One way of keeping a model.

    Attributes:
        file: the model's file in a package.
        group: dependency group of ``pyproject.toml`` that brings the library.
        read: makes the scoring function; raises whatever the library raises.
    """

    file: str
    group: str
    read: Callable[[bytes], Score]


def open_model(name: str, content: bytes, width: int) -> Score:
    """Return the scoring function of a model of ``width`` features, tried on one row.

    Raises:
        PackageError: when the format is unknown, its library is missing, or the content is not such a model.
    """
    form = FORMATS.get(name)
    if form is None:
        msg = f"model format {name!r} is unknown (known: {', '.join(FORMATS)}); upgrade the service"
        raise PackageError(msg)
    # xgboost 3.2 ends the whole process on an empty model.
    if not content:
        msg = f"{form.file} is empty; restore the package or run `make train`"
        raise PackageError(msg)
    try:
        score = form.read(content)
        shape = score(np.full((1, width), np.nan)).shape
    except ImportError as error:
        msg = (
            f"a model of format {name!r} needs a library that is not installed ({error}); install the dependency "
            f"group {form.group!r}: pip install --group {form.group}"
        )
        raise PackageError(msg) from None
    except PackageError:
        raise
    except Exception as error:  # every library has its own
        msg = f"{form.file} cannot be read as a {name} model of {width} features: {_first_line(error)}"
        raise PackageError(msg) from None
    if shape != (1,):
        msg = f"{form.file} gives an answer of shape {shape} for one row; a model must give one probability"
        raise PackageError(msg)
    return score


def _lightgbm(content: bytes) -> Score:
    with without("sklearn", "pandas"):
        import lightgbm

    booster = lightgbm.Booster(model_str=content.decode())
    return lambda x: np.asarray(booster.predict(x, num_threads=1), dtype=np.float64)


def _xgboost(content: bytes) -> Score:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(content))
    booster.set_param({"nthread": 1})
    return lambda x: np.asarray(booster.inplace_predict(x), dtype=np.float64)


def _sklearn(content: bytes) -> Score:
    import skops.io
    from threadpoolctl import ThreadpoolController

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        nodes = list(_nodes(json.loads(archive.read("schema.json"))))
    types = {f"{node['__module__']}.{node['__class__']}" for node in nodes} - SKOPS_TYPES
    loaders = {str(node["__loader__"]) for node in nodes} - SKOPS_LOADERS
    if types or loaders:
        refused = ", ".join(sorted(types | loaders))
        msg = f"model.skops holds {refused}, which this service does not load; allowed is what SKOPS_TYPES lists"
        raise PackageError(msg)
    model = skops.io.loads(content, trusted=sorted(SKOPS_TYPES))
    # Gradient boosting has no setting for it, and two spinning threads on a busy machine took 217 ms for a row that
    # one scores in 1 (scikit-learn 1.9 with GNU OpenMP).
    pools = ThreadpoolController()

    def score(x: Matrix) -> Matrix:
        with pools.limit(limits=1):
            return np.asarray(model.predict_proba(x)[:, 1], dtype=np.float64)

    return score


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, dict):
        if "__class__" in schema or "__loader__" in schema:
            yield schema
        for value in schema.values():
            yield from _nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _nodes(value)


def _onnx(content: bytes) -> Score:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (takes,) = session.get_inputs()
    gives = session.get_outputs()[-1].name
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[takes.type]

    def score(x: Matrix) -> Matrix:
        (answer,) = session.run([gives], {takes.name: x.astype(dtype)})
        scores = np.asarray(answer, dtype=np.float64)
        # Converters give both classes' probabilities, other makers one column or none.
        return scores[:, -1] if scores.ndim == 2 and scores.shape[1] <= 2 else scores

    return score


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


FORMATS: Mapping[str, Format] = {
    "lightgbm": Format("model.txt", "service", _lightgbm),
    "xgboost": Format("model.ubj", "xgboost", _xgboost),
    "sklearn": Format("model.skops", "sklearn", _sklearn),
    "onnx": Format("model.onnx", "onnx", _onnx),
}
