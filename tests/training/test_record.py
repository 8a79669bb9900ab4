"""The page that explains a record knows every line of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.bundle import NOW
from tests.project.generate import RECORD
from training.train import _record


def test_every_line_of_a_record_is_explained() -> None:
    fitted: Any = SimpleNamespace(
        estimator="e", parameters={}, rows=1, metrics={}, signature=SimpleNamespace(service="primary", contract="c")
    )

    record = _record(fitted, NOW, 7, {"raw": {}, "source": "", "tables": {}}, "")

    lines = {key for key, value in record.items() if key not in ("data", "environment")}
    lines |= {f"{part}.{key}" for part in ("data", "environment") for key in record[part]}
    assert lines == set(RECORD)
