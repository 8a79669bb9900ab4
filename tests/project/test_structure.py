"""Rules about the tree itself: which way imports go, which words stay out, what must not be committed."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"service", "training", "monitoring", "deploy", "feature_repo", "benchmarks", "tests"}
MAY_IMPORT = {
    "feature_repo": set(),
    "service": {"feature_repo"},
    "training": {"service", "feature_repo"},
    "monitoring": {"service", "feature_repo"},
    "deploy": {"service", "training", "monitoring", "feature_repo"},
}
FLIGHT_WORDS = re.compile(
    r"flight|airport|airline|airplane|\bplanes?\b|carrier|tailnum|weather|\borigins?\b|\bEWR\b|\bJFK\b|\bLGA\b|nycflights",
    re.IGNORECASE,
)


def tracked(*patterns: str) -> list[Path]:
    """Files git knows or would take, below the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in found if (ROOT / name).exists()]


def imported(path: Path) -> set[str]:
    """Top-level names of the project's own packages a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names & STAGES


@pytest.mark.parametrize("stage", sorted(MAY_IMPORT))
def test_imports_follow_the_direction_of_the_data(stage: str) -> None:
    allowed = MAY_IMPORT[stage] | {stage}

    wrong = {str(p.relative_to(ROOT)): imported(p) - allowed for p in tracked(f"{stage}/*.py") if imported(p) - allowed}

    assert wrong == {}


@pytest.mark.parametrize("stage", ["service", "monitoring", "deploy"])
def test_the_machinery_holds_no_word_of_the_reference_problem(stage: str) -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked(stage)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        # HTTP has a header of that name.
        if FLIGHT_WORDS.search(re.sub(r"inflight|in flight|Access-Control-Allow-Origin|b\"origin\"", "", line))
    ]

    assert hits == []


def test_no_file_carries_a_registry_address_or_a_path_of_one_machine() -> None:
    address = re.compile(r"(?<!emit-)index-" r"url +\S|files\.python" r"hosted|/simple(?:/|\"|$)|/wo" r"rk/|/fa" r"rm/")

    hits = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        for match in [address.search(path.read_text(errors="ignore"))]
        if match
    ]

    assert hits == []


@pytest.mark.parametrize("name", ["dev", "service"])
def test_every_locked_package_has_its_hash(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()

    blocks = re.findall(r"^[a-z0-9][^\n]*==[^\n]*(?:\n    [^\n]*)*", text, re.MULTILINE)

    assert len(blocks) > 50
    assert [b.splitlines()[0] for b in blocks if "--hash=sha256:" not in b] == []


def test_the_serving_image_takes_the_versions_everything_was_tested_with() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9][\w.\-\[\]]*==\S+)", (ROOT / f"requirements/{name}.txt").read_text(), re.M))

    assert pins("service") <= pins("dev")


@pytest.mark.parametrize(
    "package", ["mlflow", "evidently", "duckdb", "scikit-learn", "matplotlib", "great-expectations"]
)
def test_the_serving_image_stays_free_of_training_and_monitoring(package: str) -> None:
    assert not re.search(rf"^{package}==", (ROOT / "requirements/service.txt").read_text(), re.MULTILINE)


def test_nothing_large_or_made_by_a_command_is_committed() -> None:
    large = [str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > 1_000_000]
    made = [str(p.relative_to(ROOT)) for p in tracked() if p.suffix in {".db", ".parquet", ".pkl", ".html"}]

    assert large == []
    assert [m for m in made if "templates/" not in m] == []
