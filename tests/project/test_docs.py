"""The documentation tells the truth about what is there."""

from __future__ import annotations

import re
import subprocess

import pytest

from monitoring.criteria import default_criteria
from monitoring.measures import MEASURES
from service import VERSION
from service.settings import ROOT
from tests.project.generate import GENERATED, rendered

HELP = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
TARGETS = set(re.findall(r"^\s*(?:\x1b\[1m)?([a-z-]+)", HELP, re.MULTILINE))


@pytest.mark.parametrize("page", sorted(GENERATED))
def test_generated_tables_are_current(page: str) -> None:
    assert (ROOT / page).read_text() == rendered(page), "run `make docs`"


def test_help_is_the_default_target_and_lists_the_pipeline_in_order() -> None:
    default = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    order = re.findall(r"^\s*(?:\x1b\[1m)?([a-z-]+)", default, re.MULTILINE)
    pipeline = ["demo", "train", "serve", "replay", "compare", "bento", "containerize", "bench", "check", "test"]

    assert default == HELP
    assert [t for t in order if t in pipeline] == pipeline


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_pages_name_only_targets_and_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))}
    folder = (ROOT / page).parent

    assert targets - TARGETS == set()
    assert [link for link in sorted(links) if link and not (folder / link).exists()] == []


def test_one_version_everywhere() -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_every_condition_of_a_verdict_is_explained() -> None:
    page = (ROOT / "docs/verdicts.md").read_text()

    assert [name for name in MEASURES if f"`{name}`" not in page] == []


def test_the_limits_of_a_verdict_are_those_of_the_criteria() -> None:
    told: dict[str, float] = {}
    for names, limits in re.findall(
        r"^\| (.*?`.*?) \| (.*?) \|", (ROOT / "docs/verdicts.md").read_text(), re.MULTILINE
    ):
        numbers = re.findall(r"(?<![\w.])(\u2212?)(\d+(?:,\d{3})*(?:\.\d+)?)( %)?", limits)
        values = [float(n.replace(",", "")) * (-1 if sign else 1) / (100 if share else 1) for sign, n, share in numbers]
        told |= dict(zip(re.findall(r"`(\w+)`", names), values, strict=False))

    wanted = {criterion.name: criterion.limit for criterion in default_criteria().items}
    assert {name: told.get(name) for name in wanted} == pytest.approx(wanted)
