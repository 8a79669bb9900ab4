"""The workflows and the pipeline call what is there, with no more rights and no more time than they need."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ROOT

FOLDER = ROOT / ".github/workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def workflow(name: str) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key ``on`` as true."""
    plain: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text())
    return {"on" if key is True else key: value for key, value in plain.items()}


def steps(name: str) -> list[dict[str, Any]]:
    """Every step of every job."""
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def commands(name: str) -> list[str]:
    """Every line a workflow runs."""
    return [line.strip() for step in steps(name) for line in step.get("run", "").splitlines() if line.strip()]


def test_there_is_one_for_each_purpose() -> None:
    assert WORKFLOWS == ["monitoring.yml", "retraining.yml", "test.yml"]
    assert set(workflow("test.yml")["on"]) == {"push", "pull_request"}
    assert (
        set(workflow("monitoring.yml")["on"])
        == set(workflow("retraining.yml")["on"])
        == {"schedule", "workflow_dispatch"}
    )
    assert commands("test.yml") == [".ci/run"]
    assert [c for c in ("make materialize", "make skew", "make compare") if c not in commands("monitoring.yml")] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_step_is_a_target_or_ci(name: str) -> None:
    for command in commands(name):
        if command != ".ci/run":
            found = re.fullmatch(r"make ([a-z-]+)(?: [A-Z]+=\w+)*", command)
            assert found, command
            assert found[1] in TARGETS


def test_retraining_proposes_and_never_promotes() -> None:
    assert commands("retraining.yml") == ["make install", "make validate", "make train ROLE=shadow"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_are_least_time_is_limited_and_runs_do_not_meet(name: str) -> None:
    found = workflow(name)

    assert found["permissions"] == {"contents": "read"}
    assert found["concurrency"]["group"]
    assert all("permissions" not in job and 0 < job["timeout-minutes"] <= 120 for job in found["jobs"].values())
    checkouts = [step for step in steps(name) if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False] * len(found["jobs"])
    # Both write to the online store.
    assert workflow("monitoring.yml")["concurrency"] == workflow("retraining.yml")["concurrency"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_githubs_own_and_pinned(name: str) -> None:
    used = [step["uses"] for step in steps(name) if "uses" in step]

    assert used
    assert [u for u in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", u)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_secret_is_used_and_no_expression_is_pasted_into_a_command(name: str) -> None:
    assert "secrets." not in (FOLDER / name).read_text()
    assert "pull_request_target" not in workflow(name)["on"]
    assert [command for command in commands(name) if "${{" in command] == []


def modules(path: Path, seen: set[Path]) -> set[Path]:
    """Files of the project that a module imports, directly or not, wherever in it the import stands."""
    if path in seen or not path.exists():
        return seen
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            modules(ROOT / f"{name.replace('.', '/')}.py", seen)
    return seen


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_depends_on_all_the_code_it_runs(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]

    missing = [
        str(path.relative_to(ROOT))
        for path in sorted(modules(ROOT / f"training/{stage}.py", set()))
        if not any(path == dep or dep in path.parents for dep in deps)
    ]

    assert missing == []


def test_the_pipeline_runs_the_projects_commands_in_order() -> None:
    made = {name: {next(iter(o)) for o in (*s.get("outs", ()), *s.get("metrics", ()))} for name, s in STAGES.items()}

    assert list(STAGES) == ["prepare", "validate", "train"]
    for name, stage in STAGES.items():
        assert any(f"python -m training.{name}" in command for command in stage["cmd"])
        for entry in (*stage.get("outs", ()), *stage.get("metrics", ())):
            assert list(entry.values()) == [{"cache": False, "persist": True}]
    assert made["prepare"] & set(STAGES["validate"]["deps"])
    assert made["validate"] & set(STAGES["train"]["deps"])


def test_make_and_the_pipeline_stand_at_the_same_moment() -> None:
    moment = yaml.safe_load((ROOT / "params.yaml").read_text())["as_of"]

    shown = subprocess.run(["make", "-n", "validate"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert f"--as-of {moment};" in shown


def test_only_configuration_is_committed_for_dvc() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", ".dvc"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert found == [".dvc/.gitignore", ".dvc/config"]
    configuration = (ROOT / ".dvc/config").read_text()
    assert "analytics = false" in configuration
    assert "remote" not in configuration


def test_dvcs_own_lock_has_hashes() -> None:
    text = (ROOT / "requirements/dvc.txt").read_text()

    blocks = re.findall(r"^[a-z0-9][^\n]*==[^\n]*(?:\n    [^\n]*)*", text, re.MULTILINE)

    assert any(block.startswith("dvc==") for block in blocks)
    assert [b.splitlines()[0] for b in blocks if "--hash=sha256:" not in b] == []
