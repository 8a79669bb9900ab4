"""The generated parts of the documentation: `make docs` writes them, a test checks that they are current."""

from __future__ import annotations

import re
from pathlib import Path

from feature_repo import features as definitions
from service.contract import Contract, FieldSpec
from service.definitions import contracts
from service.door import expected
from service.settings import PREFIX, ROOT, Settings
from service.vector import describe


def settings_table() -> str:
    """Every setting: its variable, its default, its sentence."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default.relative_to(ROOT) if isinstance(field.default, Path) else field.default
        rows.append(f"| `{PREFIX}{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def contract_tables() -> str:
    """The contract of the primary's feature service: request, views, features."""
    contract = contracts(definitions)["primary"]
    return "\n\n".join([_request(contract), _views(contract), _features(contract)])


def _request(contract: Contract) -> str:
    rows = ["**Request**", "", "| field | takes | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{f.name}` | {_takes(f)} | {f.description} |" for f in contract.request_fields]
    return "\n".join(rows)


def _takes(spec: FieldSpec) -> str:
    bounds = []
    if spec.earliest is not None:
        bounds.append(f"not before now + {describe(spec.earliest)}")
    if spec.latest is not None:
        bounds.append(f"not after now + {describe(spec.latest)}")
    return ", ".join([expected(spec), *bounds])


def _views(contract: Contract) -> str:
    rows = ["**Views**", "", "| view | by | at most | TTL | when it fails |", "| --- | --- | --- | --- | --- |"]
    for view in contract.views:
        limit, ttl = (describe(x) if x else "any age" for x in (view.max_staleness, view.ttl))
        outcome = "the fallback answers" if view.policy == "degrade" else "the primary answers, marked degraded"
        rows.append(f"| `{view.name}` | {', '.join(view.keys)} | {limit} | {ttl} | {outcome} |")
    return "\n".join(rows)


def _features(contract: Contract) -> str:
    home = {name: view.name for view in contract.views for name in view.features}
    home |= {name: step.name for step in contract.on_demand for name in step.features}
    rows = ["**Features, in model order**", "", "| feature | from | takes | meaning |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{f.name}` | {home.get(f.name, 'request')} | {expected(f)} | {f.description} |" for f in contract.fields
    ]
    return "\n".join(rows)


GENERATED = {"docs/settings.md": ("settings", settings_table), "docs/contract.md": ("contract", contract_tables)}


def rendered(path: str) -> str:
    """The page as it should be."""
    name, make = GENERATED[path]
    mark = f"<!-- generated: {name} -->"
    pattern = re.escape(mark) + r".*" + re.escape(mark)
    return re.sub(pattern, lambda _: f"{mark}\n{make()}\n{mark}", (ROOT / path).read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    for page in GENERATED:
        (ROOT / page).write_text(rendered(page))
        print(f"wrote {page}")
