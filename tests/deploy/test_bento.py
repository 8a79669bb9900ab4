"""The Bento carries what it needs, and serves from another place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.demo import environment, serving
from service.clock import write_clock
from service.settings import ROOT
from tests.bundle import NOW, REQUEST, Bundle, make_bundle
from tests.serving import PATIENT, Served

pytestmark = pytest.mark.slow
BENTOML = Path(sys.executable).with_name("bentoml")


def build(tree: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``bentoml build`` in a tree."""
    env = {**environment(folder), "UNDERSTUDY_CLOCK": "wall"}
    del env["UNDERSTUDY_MODELS_DIR"]
    command = [str(BENTOML), "build", "--output", "tag"]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A Bento built from a copy of the sources with a small bundle's models."""
    folder = tmp_path_factory.mktemp("bento")
    bundle = make_bundle(folder)
    tree = folder / "tree"
    for name in ("service", "feature_repo", "requirements", "docs"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "bentofile.yaml", tree)
    shutil.copytree(bundle.settings.models_dir, tree / "models")
    done = build(tree, folder)
    assert done.returncode == 0, done.stderr
    tag = done.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    return folder / "bentoml" / "bentos" / tag.replace(":", "/"), bundle


def test_it_carries_models_definitions_and_lock_and_nothing_of_the_other_stages(bento: tuple[Path, Bundle]) -> None:
    home, bundle = bento
    held = {str(p.relative_to(home / "src")) for p in (home / "src").rglob("*") if p.is_file()}

    seats = json.loads((bundle.settings.models_dir / "roles.json").read_text())["roles"].values()

    assert {f"models/{seat['package']}/manifest.json" for seat in seats} <= held
    assert {"models/roles.json", "feature_repo/features.py", "feature_repo/feature_store.yaml"} <= held
    assert {Path(name).parts[0] for name in held} == {
        "service", "feature_repo", "models", "requirements", "docs", "bentofile.yaml",
    }  # fmt: skip
    assert "--hash=sha256:" in (home / "env/python/requirements.txt").read_text()


def test_its_openapi_document_follows_the_contract(bento: tuple[Path, Bundle]) -> None:
    document = yaml.safe_load((bento[0] / "apis/openapi.yaml").read_text())

    assert {"/predict", "/predict_batch", "/labels"} <= set(document["paths"])
    assert set(REQUEST) <= set(json.dumps(document).replace('"', " ").replace(":", " ").split())


def test_it_answers_from_another_folder_with_its_own_models(bento: tuple[Path, Bundle], tmp_path: Path) -> None:
    home, bundle = bento
    env = environment(bundle.settings.state_dir.parent) | PATIENT
    del env["UNDERSTUDY_MODELS_DIR"], env["PYTHONPATH"]
    write_clock(bundle.settings.state_dir / "clock", NOW)

    # More shadows than it was built with: how many rehearse is the place's choice, not the build's.
    with serving(env | {"UNDERSTUDY_SHADOWS": "2"}, tmp_path / "serve.log", str(home), cwd=tmp_path) as url:
        service = Served(url, bundle)
        status, answer = service.post("/predict", REQUEST)
        series = service.get("/metrics")

    assert (status, answer["role"], answer["confidence"]) == (200, "primary", "normal")
    assert 'understudy_shadow_queue{role="shadow_2"}' in series


def test_containerize_without_an_engine_says_so(bento: tuple[Path, Bundle], tmp_path: Path) -> None:
    home, _ = bento
    env = {**os.environ, "PATH": str(tmp_path), "BENTOML_HOME": str(home.parents[2]), "DOCKER_HOST": "unix:///nowhere"}
    tag = f"{home.parent.name}:{home.name}"

    done = subprocess.run(
        [sys.executable, BENTOML, "containerize", tag], env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "docker" in (done.stdout + done.stderr).lower()


def test_a_looser_definition_is_refused_until_a_model_is_trained_under_it(bento: tuple[Path, Bundle]) -> None:
    _, bundle = bento
    folder = bundle.settings.models_dir.parent
    definitions = folder / "tree/feature_repo/features.py"
    whole = definitions.read_text()
    definitions.write_text(whole.replace('"max_staleness": "45m"', '"max_staleness": "90m"'))
    try:
        done = build(folder / "tree", folder)
    finally:
        definitions.write_text(whole)

    assert done.returncode != 0
    assert "looser origin_traffic: max_staleness 45 min -> 1 h 30 min" in done.stderr + done.stdout
