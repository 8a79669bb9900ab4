"""Model formats: each is read with its own library, on one thread, and nothing else gets in."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skops.io
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from service.errors import PackageError
from service.models import FORMATS, open_model
from service.roles import Role
from service.settings import ROOT
from tests.bundle import REQUEST, TOYS, make_bundle, seat_model
from tests.serving import served
from training.estimators import FITTERS, Trained

X = np.random.default_rng(3).random((300, 3))
Y = (X[:, 0] > 0.5).astype(float)


def toy(estimator: str) -> Trained:
    """A small model of three features."""
    return FITTERS[estimator](TOYS[estimator], X, Y, [], 7)


@pytest.mark.parametrize("estimator", sorted(TOYS))
def test_every_format_gives_one_probability_per_row(estimator: str) -> None:
    trained = toy(estimator)

    scores = open_model(trained.format, trained.content, 3)(X)

    assert scores.shape == (300,)
    assert scores.dtype == np.float64
    assert ((scores > 0) & (scores < 1)).all()
    assert np.corrcoef(scores, Y)[0, 1] > 0.5
    np.testing.assert_array_equal(scores, trained.predict(X))


@pytest.mark.parametrize("estimator", sorted(TOYS))
def test_a_row_scores_the_same_alone_and_among_others(estimator: str) -> None:
    score = toy(estimator).predict

    # ONNX computes in single precision, several rows at once in another order than one.
    close = 1e-6 if estimator == "logistic_onnx" else 1e-15
    np.testing.assert_allclose([score(X[i : i + 1])[0] for i in range(20)], score(X)[:20], rtol=0, atol=close)


@pytest.mark.parametrize(
    ("estimator", "library", "group"),
    [
        ("lightgbm", "lightgbm", "service"),
        ("xgboost", "xgboost", "xgboost"),
        ("logistic", "skops", "sklearn"),
        ("logistic_onnx", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_library_names_the_dependency_group(
    estimator: str, library: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = toy(estimator)
    for name in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(PackageError, match=rf"{library}.*dependency group '{group}': pip install --group {group}"):
        open_model(trained.format, trained.content, 3)


def test_the_groups_that_messages_name_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text()

    assert [form.group for form in FORMATS.values() if f"\n{form.group} = [" not in text] == []


def test_nothing_is_imported_before_a_model_needs_it() -> None:
    libraries = ["lightgbm", "xgboost", "sklearn", "skops", "onnxruntime", "pyarrow"]
    code = f"import sys, service.models, service.package; print([m for m in {libraries} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("estimator", sorted(set(TOYS) - {"logistic"}))  # too little work for a second thread
def test_scoring_keeps_to_one_thread(estimator: str, tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np; from pathlib import Path; from service.models import open_model\n"
        "score, x = open_model(sys.argv[1], Path(sys.argv[2]).read_bytes(), 3), np.random.rand(100000, 3)\n"
        "time.sleep(0.2); before = time.process_time(), time.thread_time()\n"
        "for _ in range(20): score(x)\n"
        "time.sleep(0.2); print(time.process_time() - before[0], time.thread_time() - before[1])"
    )
    trained = toy(estimator)
    path = tmp_path / "model"
    path.write_bytes(trained.content)
    command = [sys.executable, "-c", code, trained.format, str(path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    every, own = map(float, done.stdout.split())
    assert every - own < 0.1 * own + 0.02, "other threads of the process computed too"


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(PackageError, match=r"'catboost' is unknown \(known: lightgbm, xgboost, sklearn, onnx\)"):
        open_model("catboost", b"x", 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"", b"{", b"tree\n", b"PK\x03\x04", b"\x08\x07"])
def test_what_is_no_model_is_refused_by_the_files_name(name: str, content: bytes) -> None:
    with pytest.raises(PackageError, match=FORMATS[name].file.replace(".", r"\.")):
        open_model(name, content, 3)


@pytest.mark.parametrize("estimator", sorted(TOYS))
def test_a_model_of_another_width_is_refused(estimator: str) -> None:
    trained = toy(estimator)

    with pytest.raises(PackageError, match="model of 4 features"):
        open_model(trained.format, trained.content, 4)


def doubled(x: Any) -> Any:
    """A function no service knows."""
    return x * 2


def test_a_skops_file_with_a_type_off_the_list_is_refused_by_its_name() -> None:
    model = skops.io.dumps(RandomForestClassifier(n_estimators=2).fit(X, Y))

    with pytest.raises(PackageError, match=r"RandomForestClassifier.*SKOPS_TYPES"):
        open_model("sklearn", model, 3)


def test_a_skops_file_with_a_function_off_the_list_is_refused_by_its_name() -> None:
    model = make_pipeline(FunctionTransformer(doubled), LogisticRegression()).fit(X, Y)

    with pytest.raises(PackageError, match=r"test_models\.doubled"):
        open_model("sklearn", skops.io.dumps(model), 3)


def test_a_skops_file_with_a_function_skops_itself_trusts_is_refused() -> None:
    model = make_pipeline(FunctionTransformer(np.sqrt), LogisticRegression()).fit(X, Y)
    content = skops.io.dumps(model)
    assert skops.io.get_untrusted_types(data=content) == []

    with pytest.raises(PackageError, match="sqrt"):
        open_model("sklearn", content, 3)


def test_a_skops_file_that_wants_another_way_of_loading_is_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(toy("logistic").content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["schema.json"] = files["schema.json"].replace(b'"SliceNode"', b'"MethodNode"')
    assert b"MethodNode" in files["schema.json"]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)

    with pytest.raises(PackageError, match="MethodNode"):
        open_model("sklearn", target.getvalue(), 3)


@pytest.mark.parametrize(("width", "dtype"), [(None, TensorProto.FLOAT), (1, TensorProto.DOUBLE)])
def test_onnx_models_of_other_makers_are_read(width: int | None, dtype: int) -> None:
    """One output, a vector or a column, single or double precision."""
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["p"], keepdims=int(width is not None))
    graph = helper.make_graph(
        [mean],
        "mean",
        [helper.make_tensor_value_info("x", dtype, [None, 3])],
        [helper.make_tensor_value_info("p", dtype, [None] if width is None else [None, width])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)

    np.testing.assert_allclose(open_model("onnx", model.SerializeToString(), 3)(X), X.mean(axis=1), atol=1e-6)


def test_an_onnx_model_of_three_classes_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["p"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    with pytest.raises(PackageError, match=r"shape \(1, 3\) for one row; a model must give one probability"):
        open_model("onnx", model.SerializeToString(), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("primary", "shadow"), [("xgboost", "hist_gradient"), ("hist_gradient", "logistic"), ("logistic", "xgboost")]
)
def test_models_of_other_formats_serve_and_rehearse(primary: str, shadow: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    seats: dict[Role, str] = {"primary": primary, "shadow": shadow, "fallback": "logistic_onnx"}
    for role, estimator in seats.items():
        seat_model(bundle.settings, role, seed=9, estimator=estimator)

    with served(bundle, tmp_path) as live:
        live.wait_for_runner("shadow")
        live.post("/predict", REQUEST)
        status, first = live.post("/predict", REQUEST)
        (rehearsed,) = live.wait_for("shadow", lambda r: r["request_id"] == first["request_id"])
        # Nothing is stored for this origin, so the primary must not answer.
        _, second = live.post("/predict", {**REQUEST, "origin": "LGA"})

    assert (status, first["role"], first["confidence"]) == (200, "primary", "normal")
    assert (second["role"], second["model_version"]) == ("fallback", "9")
    assert 0 < first["prediction"] < 1
    assert 0 <= second["prediction"] <= 1
    assert (rehearsed["outcome"], rehearsed["model_version"]) == ("scored", "9")
