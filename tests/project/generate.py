"""The generated parts of the documentation: `make docs` writes them, a test checks that they are current."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from feature_repo import features as definitions
from monitoring.skew_job import summary
from service.changes import changes
from service.contract import Contract, FieldSpec
from service.definitions import contracts
from service.door import expected
from service.features import Stored
from service.settings import PREFIX, ROOT, Settings
from service.vector import build_vector, describe
from tests.bundle import NOW, STORED, parsed_request
from tests.monitoring.world import KEYS, Line, changed, make_world
from tests.training.test_materialize import AT, tables
from training.materialize import line
from training.store import apply, materialize, open_store


def settings_table() -> str:
    """Every setting: its variable, its default, its sentence."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default.relative_to(ROOT) if isinstance(field.default, Path) else field.default
        default = "" if default is None else default.get_secret_value() if isinstance(default, SecretStr) else default
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


def plan_output() -> str:
    """What `make plan` prints after three edits of the definitions."""
    contract = contracts(definitions)["primary"]
    before = contract.record()
    after = copy.deepcopy(before)
    after["views"][1]["max_staleness"] = 5400.0
    after["fields"][-1]["maximum"] = 1000.0
    after["on_demand"][0]["code"] = after["on_demand"][0]["code"].replace("America/New_York", "UTC")
    return fenced("\n".join(["primary:", *(f"  {change}" for change in changes(before, after))]))


def violation_table() -> str:
    """One violation of every kind, as the service words them."""
    fresh = {view: dict(row) for view, row in STORED.items()}
    times: dict[str, Any] = dict.fromkeys(STORED, NOW - timedelta(minutes=10))
    fresh["origin_weather"] |= {"visib": None, "temp": 300.0, "humid": "wet"}
    times["origin_traffic"] = NOW - timedelta(hours=1)
    del fresh["route_record"]
    contract = contracts(definitions)["primary"]
    request = parsed_request(carrier="??")
    closed = [replace(f, allowed=("AA", "UA")) if f.name == "carrier" else f for f in contract.fields]
    vector = build_vector(replace(contract, fields=tuple(closed)), request, Stored(fresh, times), NOW)
    rows = ["| kind | feature or view | message | what follows |", "| --- | --- | --- | --- |"]
    for v in vector.violations:
        follows = "the fallback answers" if v.policy == "degrade" else "the primary answers, marked degraded"
        rows.append(f"| `{v.kind}` | `{v.feature}` | {v.message} | {follows} |")
    return "\n".join(rows)


def materialize_output() -> str:
    """What two runs of `make materialize` print for tables of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        settings = tables(Path(folder), planes=40)
        store = open_store(settings)
        apply(store, settings)
        contract = contracts(definitions)["primary"]
        parts = []
        for at in (AT - timedelta(hours=3), AT - timedelta(minutes=20)):
            lines = [line(view, at) for view in materialize(store, contract, at)]
            parts.append("\n".join([f"$ make materialize AT={at:%Y-%m-%dT%H:%MZ}", *lines]))
    return fenced("\n\n".join(parts))


def skew_output() -> str:
    """What `make skew` prints of a log into which two faults were planted."""
    order = dict(zip(KEYS["carrier"], ("UA", "AA", "B6", "DL"), strict=True))

    def spoil(entry: Line) -> None:
        entry["vector"]["carrier"] = order[entry["vector"]["carrier"]]
        entry["vector"]["wind_gust"] = entry["vector"]["wind_gust"] or 0.0

    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        return fenced(summary(world.audited(changed(world, spoil))).strip("\n"))


# Every line of a model's record, with what it was in one run, and what it protects against.
RECORD = {
    "as_of": ("2013-10-01T00:00:00+00:00", "features and labels that were not known yet"),
    "seed": ("7", "a model that cannot be made again"),
    "estimator": ("lightgbm", "comparing models of two kinds without noticing"),
    "parameters": ("rounds 300, num_leaves 63, ...", "a change of parameters nobody wrote down"),
    "rows": ("249,127", "a join or a filter that lost rows"),
    "metrics": (
        "auc 0.742, ece, log_loss, ...",
        "a figure that belongs to another model; of the weeks it has not seen",
    ),
    "data.raw": ("SHA-256 per raw file", "raw data that changed under the same name"),
    "data.source": ("SHA-256 of the code that prepares", "another meaning of the same raw data"),
    "data.tables": ("SHA-256 per prepared table", "tables that were edited or made otherwise"),
    "data_digest": ("022f2c864c45...", "all of the three above, in one line"),
    "feature_service": ("primary", "a model served with other features than it learned"),
    "contract": ("c519be151500...", "limits or functions that changed since; `make plan` shows which"),
    "environment.commit": ("06fab26...", "code nobody can find again"),
    "environment.dirty": ("false", "code that is in no commit"),
    "environment.lock": ("SHA-256 of the lock", "other versions of anything installed"),
    "environment.python": ("3.11.7", "another interpreter"),
    "environment.platform": ("linux-x86_64", "another machine's arithmetic"),
    "environment.packages": ("lightgbm 4.7.0, ...", "having to look into the lock for what matters most"),
}


def record_table() -> str:
    """The record's lines."""
    rows = ["| line | in one run | protects against |", "| --- | --- | --- |"]
    rows += [f"| `{line}` | {value} | {against} |" for line, (value, against) in RECORD.items()]
    return "\n".join(rows)


def fenced(text: str) -> str:
    """A block of terminal output."""
    return f"```text\n{text}\n```"


GENERATED: dict[str, dict[str, Callable[[], str]]] = {
    "docs/settings.md": {"settings": settings_table},
    "docs/contract.md": {"contract": contract_tables},
    "docs/training.md": {"record": record_table},
    "docs/feature-store.md": {
        "plan": plan_output, "violations": violation_table, "materialize": materialize_output, "skew": skew_output,
    },
}  # fmt: skip


def rendered(path: str) -> str:
    """The page as it should be."""
    text = (ROOT / path).read_text()
    for name, make in GENERATED[path].items():
        mark = f"<!-- generated: {name} -->"
        pattern = re.escape(mark) + r".*" + re.escape(mark)
        block = f"{mark}\n{make()}\n{mark}".replace("\\", r"\\")
        text = re.sub(pattern, block, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in GENERATED:
        (ROOT / page).write_text(rendered(page))
        print(f"wrote {page}")
