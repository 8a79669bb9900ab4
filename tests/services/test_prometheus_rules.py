"""promtool plays series to the alert rules: they fire when they should, stay quiet otherwise, and no limit is loose."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ROOT

pytestmark = pytest.mark.services
FOLDER = ROOT / "deploy/prometheus"
RULES = {path.name: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "rules").glob("*.yml"))}
TESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "tests").glob("*.yml"))}
WORLDS = ("absent.yml", "no-traffic.yml", "quiet.yml")
ALERTS = {
    rule["alert"]: (name, g, r)
    for name, file in RULES.items()
    for g, group in enumerate(file["groups"])
    for r, rule in enumerate(group["rules"])
    if "alert" in rule
}
# A number that is neither part of a name, a label's value nor a window.
NUMBER = re.compile(r'(?<![\w."\[~:-])\d+(?:\.\d+)?(?![\w."\]])')
FLIPPED = {">": "<=", "<": ">=", ">=": "<", "<=": ">", "==": "!=", "!=": "=="}
# States are whole numbers, so half of this one is the same limit.
SAME = {("BreakerOpen", "1 -> 0.5")}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool; its absence is a failure, not a reason to skip."""
    program = shutil.which("promtool")
    assert program, "promtool is not installed; install the distribution's package `prometheus`"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def entries(group: dict[str, Any], alert: str) -> list[dict[str, Any]]:
    """The expectations of a test group about one alert."""
    return [entry for entry in group.get("alert_rule_test", ()) if entry["alertname"] == alert]


@pytest.mark.parametrize("name", sorted(TESTS))
def test_the_rules_do_as_their_tests_say(name: str) -> None:
    done = promtool("test", "rules", str(FOLDER / "tests" / name))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_well_formed() -> None:
    done = promtool("check", "rules", *(str(FOLDER / "rules" / name) for name in RULES))

    assert done.returncode == 0, done.stdout + done.stderr


def mutants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule that differs in one number, comparison or waiting time."""
    expr = rule["expr"]
    for found in NUMBER.finditer(expr):
        for factor in (0.5, 1.5) if float(found[0]) else ():
            value = f"{float(found[0]) * factor:g}"
            yield f"{found[0]} -> {value} (at {found.start()})", changed(rule, expr, found, value)
    for found in re.finditer(r"(?<= )(>=|<=|==|!=|>|<)(?= )", expr):
        yield f"{found[0]} -> {FLIPPED[found[0]]} (at {found.start()})", changed(rule, expr, found, FLIPPED[found[0]])
    if "for" in rule:
        yield "for -> 0s", {**rule, "for": "0s"}
        yield "for doubled", {**rule, "for": re.sub(r"\d+", lambda n: str(2 * int(n[0])), rule["for"])}


def changed(rule: dict[str, Any], expr: str, found: re.Match[str], value: str) -> dict[str, Any]:
    """The rule with one part of its expression replaced."""
    return {**rule, "expr": expr[: found.start()] + value + expr[found.end() :]}


def survives(alert: str, mutant: dict[str, Any], folder: Path) -> bool:
    """Whether the tests about an alert pass with a changed rule."""
    name, g, r = ALERTS[alert]
    rules = [mutant]
    for rule in reversed(RULES[name]["groups"][g]["rules"][:r]):
        # The others only cost time.
        if any(rule.get("record", "none") in kept["expr"] for kept in rules):
            rules.insert(0, rule)
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "changed", "rules": rules}]}))
    for _, file in sorted(TESTS.items(), key=lambda item: item[0] in WORLDS):
        about = [
            {**group, "alert_rule_test": entries(group, alert)} for group in file["tests"] if entries(group, alert)
        ]
        for group in about:
            group.pop("promql_expr_test", None)
        if not about:
            continue
        (folder / "tests.yml").write_text(yaml.safe_dump({**file, "rule_files": ["rules.yml"], "tests": about}))
        if promtool("test", "rules", str(folder / "tests.yml")).returncode:
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_a_changed_limit_comparison_or_waiting_time_is_noticed(alert: str, tmp_path: Path) -> None:
    name, g, r = ALERTS[alert]
    rule = RULES[name]["groups"][g]["rules"][r]

    unnoticed = [
        change
        for change, mutant in mutants(rule)
        if (alert, change.partition(" (")[0]) not in SAME and survives(alert, mutant, tmp_path)
    ]

    assert survives(alert, rule, tmp_path), "the tests fail with the rule as it is"
    assert unnoticed == []
