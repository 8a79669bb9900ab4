"""Which columns to read from a log that models with different features wrote to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from service.contract import Contract, FieldSpec


def every_field(contract: Contract, models_dir: Path) -> tuple[Contract, tuple[str, ...]]:
    """Add to today's contract the features that packages were trained on and it no longer has.

    A feature that is text for one model and a number for another is read as text, which both can be made from.

    Returns:
        The contract to read the log with, and what changed between the models, in sentences.
    """
    fields = {spec.name: spec for spec in contract.fields}
    notes: dict[str, None] = {}
    for path in sorted((models_dir / "packages").glob("*/contract.json")):
        for name, dtype in _declared(path).items():
            known = fields.get(name)
            if known is None:
                notes[f"{name} is not in today's contract; an earlier model was trained on it"] = None
                fields[name] = FieldSpec(name, dtype, nullable=True)  # type: ignore[arg-type]
            elif known.dtype != dtype and {known.dtype, dtype} != {"int", "float"}:
                notes[f"{name} is {dtype} for one model and {known.dtype} for another"] = None
                fields[name] = replace(known, dtype="str")
            elif known.dtype != dtype:
                fields[name] = replace(known, dtype="float")
    return replace(contract, fields=tuple(fields.values())), tuple(notes)


def _declared(path: Path) -> dict[str, str]:
    # Only to know which columns to read; what a model is held against comes from its verified package.
    try:
        fields = json.loads(path.read_text())["fields"]
        kinds = {"float", "int", "str", "bool", "timestamp"}
        return {str(f["name"]): str(f["dtype"]) for f in fields if f["dtype"] in kinds}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
