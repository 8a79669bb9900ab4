"""DVC itself runs the pipeline: everything once, nothing twice, and after a change what depends on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.settings import ROOT
from tests.project.test_structure import tracked

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
STAGES = ["prepare", "validate", "train"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of this tree as it stands, at an early moment, with this tree's environments."""
    made = subprocess.run(["make", "dvc-env"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    folder = tmp_path_factory.mktemp("clone")
    for path in tracked():
        target = folder / path.relative_to(ROOT)
        if target.name != "dvc.lock":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    for name in (".venv", ".venv-dvc"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text('as_of: "2013-03-01"\n')
    (folder / ".git/info").mkdir(parents=True)
    # As a pattern with a slash at its end, .gitignore does not mean the links.
    (folder / ".git/info/exclude").write_text(".venv\n.venv-dvc\n")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "tree"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def ran(clone: Path, *, fails: bool = False) -> list[str]:
    """Stages that ``make pipeline`` ran."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("UNDERSTUDY_", "MLFLOW_", "PYTHON"))}
    done = subprocess.run(["make", "pipeline"], cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return [stage for stage in STAGES if f"Running stage '{stage}'" in done.stdout]


def status(clone: Path) -> list[str]:
    """What git sees changed."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout.split()


def test_each_stage_runs_once_and_again_only_after_what_it_depends_on_changed(clone: Path) -> None:
    assert ran(clone) == STAGES
    trained = json.loads((clone / "state/pipeline/train.json").read_text())
    assert trained["as_of"].startswith("2013-03-01")
    assert set(trained["roles"]) == {"primary", "fallback"}
    assert status(clone) == ["??", "dvc.lock"]

    assert ran(clone) == []

    # Seats are moved by people, too: no reason to train.
    roles = clone / "models/roles.json"
    roles.write_text(roles.read_text() + "\n")
    assert ran(clone) == []

    # The evaluation is a part of training alone, but validation's code is in the same folder.
    source = clone / "training/evaluate.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert ran(clone) == ["validate", "train"]

    (clone / "params.yaml").write_text('as_of: "2013-04-01"\n')
    assert ran(clone) == ["validate", "train"]


def test_a_table_that_was_tampered_with_is_made_again(clone: Path) -> None:
    ran(clone)
    (clone / "state/prepared.json").unlink()

    assert ran(clone) == ["prepare"]
    assert ran(clone) == []


def test_a_failed_stage_stops_the_pipeline_and_keeps_what_was_there(clone: Path) -> None:
    ran(clone)
    before = (clone / "state/rows.parquet").read_bytes()
    source = clone / "training/source.py"
    text = source.read_text()
    source.write_text(text + "\nraise SystemExit(3)\n")

    assert ran(clone, fails=True) == ["prepare"]

    assert (clone / "state/rows.parquet").read_bytes() == before
    source.write_text(text)
    assert ran(clone) == []


def test_a_state_folder_elsewhere_is_refused(clone: Path) -> None:
    environment = {**os.environ, "UNDERSTUDY_STATE_DIR": str(clone / "other")}

    done = subprocess.run(["make", "pipeline"], cwd=clone, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "unset UNDERSTUDY_STATE_DIR" in done.stderr
