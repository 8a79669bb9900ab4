"""What a request and a feature may look like, read once from the Feast definitions.

The tags on Feast fields, views, entities and feature services are the only place where a limit is written.
This module turns them into a frozen :class:`service.contract.Contract`.

Tags understood:

==================  ==========================================================================================
on a field          ``nullable`` (``true``/``false``, default false), ``min``, ``max`` (a number; for a timestamp
                    ``now``, ``now+24h``, ``now-90m``), ``allowed`` (comma-separated closed set), ``description``,
                    ``categorical`` (``true``: an open set of categories)
on a view           ``max_staleness`` (``90m``, ``36h``, ``60d``; default: the view's TTL), ``policy``
                    (``degrade``: the fallback answers; ``tolerate``: the primary answers, marked degraded)
on an entity        ``nullable``, ``allowed``: for its join key
on an on-demand     one tag per feature it computes, named as the feature: ``min=0 max=23 nullable=true`` (feast 0.67
view                refuses tags on the fields themselves when it infers them)
on a service        ``key_features`` (entities whose join key is itself a model input), ``output``
                    (see ``output.py``), ``positive`` (what 1 means), ``slices`` (columns results are split by)
==================  ==========================================================================================
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from datetime import timedelta
from types import ModuleType
from typing import Any

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
from feast import Field as FeastField
from feast.types import Int64, String
from pydantic import BaseModel

from service.contract import Contract, Dtype, FieldSpec, OnDemand, ViewSpec, duration
from service.errors import ContractError

_DTYPES: dict[str, Dtype] = {
    "Float32": "float",
    "Float64": "float",
    "Int32": "int",
    "Int64": "int",
    "String": "str",
    "Bool": "bool",
    "UnixTimestamp": "timestamp",
}


def contracts(definitions: ModuleType | Mapping[str, Any]) -> dict[str, Contract]:
    """Read every feature service defined in a module (or mapping of names) of Feast objects.

    Raises:
        ContractError: when a tag is malformed, or a service uses an object the module does not hold; and when a
            service is asked for that is not there.
    """
    objects = list((vars(definitions) if isinstance(definitions, ModuleType) else definitions).values())
    views = {o.name: o for o in objects if isinstance(o, FeatureView) and not isinstance(o, OnDemandFeatureView)}
    on_demand = {o.name: o for o in objects if isinstance(o, OnDemandFeatureView)}
    entities = {o.name: o for o in objects if isinstance(o, Entity)}
    services = [o for o in objects if isinstance(o, FeatureService)]
    return _Contracts({s.name: _contract(s, views, on_demand, entities) for s in services})


class _Contracts(dict[str, Contract]):
    def __missing__(self, name: str) -> Contract:
        msg = f"there is no feature service {name}; the definitions hold {', '.join(self) or 'none'}"
        raise ContractError(msg)


def _contract(
    service: FeatureService,
    views: Mapping[str, FeatureView],
    on_demand: Mapping[str, OnDemandFeatureView],
    entities: Mapping[str, Entity],
) -> Contract:
    fields: list[FieldSpec] = []
    used_views: dict[str, FeatureView] = {}
    used_on_demand: list[OnDemand] = []
    inputs: dict[str, FieldSpec] = {}
    for projection in service.feature_view_projections:
        if projection.name in on_demand:
            definition = on_demand[projection.name]
            fields.extend(_computed(f, definition) for f in projection.features)
            entry = _on_demand(definition)
            used_on_demand.append(entry)
            for source in definition.source_request_sources.values():
                inputs.update({f.name: _field(f) for f in source.schema})
            used_views.update({name: views[name] for name in entry.sources})
        elif projection.name in views:
            used_views[projection.name] = views[projection.name]
            fields.extend(_field(f) for f in projection.features)
        else:
            msg = f"feature service {service.name} uses view {projection.name}, which the definitions do not hold"
            raise ContractError(msg)
    if stamps := [f.name for f in fields if f.dtype == "timestamp"]:
        msg = f"feature service {service.name}: {', '.join(stamps)} cannot be a model input; derive a number from it"
        raise ContractError(msg)
    tags = service.tags
    for name in sorted(inputs):
        _usable(name)
    key_features = _named(tags.get("key_features", ""), entities)
    keys = {e.join_key: e for e in key_features}
    keys.update({entities[name].join_key: entities[name] for v in used_views.values() for name in v.entities})
    for name in keys:
        _usable(name)
    return Contract(
        name=service.name,
        keys=tuple(_key(entity) for entity in keys.values()),
        inputs=tuple(inputs.values()),
        views=tuple(_view(v, entities) for v in used_views.values()),
        on_demand=tuple(used_on_demand),
        fields=tuple([_key(e) for e in key_features] + fields),
        output=tags.get("output", "probability"),
        positive=tags.get("positive", ""),
        slices=_split(tags.get("slices", "")),
    )


def _usable(name: str) -> None:
    """Refuse what no field of a request can be called: a request's own id, and what pydantic (2) keeps for itself."""
    if name == "request_id" or name.startswith("_") or (name.startswith("model_") and hasattr(BaseModel, name)):
        msg = f"field {name}: a request's field cannot be called that; give it another name"
        raise ContractError(msg)


def _named(names: str, entities: Mapping[str, Entity]) -> list[Entity]:
    try:
        return [entities[name] for name in _split(names)]
    except KeyError as error:
        msg = f"tag key_features names entity {error}, which the definitions do not hold"
        raise ContractError(msg) from None


def _on_demand(definition: OnDemandFeatureView) -> OnDemand:
    inputs = [f.name for s in definition.source_request_sources.values() for f in s.schema]
    inputs += [f.name for p in definition.source_feature_view_projections.values() for f in p.features]
    return OnDemand(
        name=definition.name,
        inputs=tuple(inputs),
        features=tuple(f.name for f in definition.features),
        sources=tuple(definition.source_feature_view_projections),
        compute=definition.feature_transformation.udf,
        code=_code(definition.feature_transformation.udf_string),
    )


def _code(source: str) -> str:
    """A function as the interpreter reads it: a comment, a docstring or a line break does not change it."""
    tree = ast.parse(textwrap.dedent(source))
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda))
    if isinstance(function, ast.FunctionDef):
        function.decorator_list = []
        if ast.get_docstring(function) is not None:
            function.body = function.body[1:] or [ast.Pass()]
    return ast.unparse(function)


def _computed(feature: FeastField, definition: OnDemandFeatureView) -> FieldSpec:
    limits = (definition.tags or {}).get(feature.name, "")
    try:
        tags = dict(part.split("=", 1) for part in limits.split())
    except ValueError:
        msg = f"on-demand view {definition.name}: tag {feature.name}={limits!r} is not like 'min=0 max=23'"
        raise ContractError(msg) from None
    return _field(FeastField(name=feature.name, dtype=feature.dtype, tags=tags))


def _view(view: FeatureView, entities: Mapping[str, Entity]) -> ViewSpec:
    where = f"feature view {view.name}"
    ttl = view.ttl if view.ttl and view.ttl > timedelta(0) else None
    limit = view.tags.get("max_staleness")
    policy = view.tags.get("policy", "degrade")
    if policy not in ("degrade", "tolerate"):
        msg = f"{where}: policy={policy!r} is not one of degrade, tolerate"
        raise ContractError(msg)
    return ViewSpec(
        name=view.name,
        keys=tuple(entities[name].join_key for name in view.entities),
        features=tuple(f.name for f in view.features),
        ttl=ttl,
        max_staleness=duration(limit, where) if limit else ttl,
        policy=policy,
    )


def _key(entity: Entity) -> FieldSpec:
    as_field = FeastField(
        name=entity.join_key, dtype=_feast_type(entity), tags=entity.tags, description=entity.description
    )
    return _field(as_field)


def _feast_type(entity: Entity) -> Any:
    return Int64 if entity.value_type.name.startswith("INT") else String


def _field(definition: FeastField) -> FieldSpec:
    tags, where = definition.tags or {}, f"field {definition.name}"
    kind = str(definition.dtype)
    if kind not in _DTYPES:
        msg = f"{where}: type {kind} is not supported; use one of {', '.join(_DTYPES)}"
        raise ContractError(msg)
    dtype = _DTYPES[kind]
    known = {"nullable", "min", "max", "allowed", "categorical", "description"}
    if unknown := sorted(set(tags) - known):
        msg = f"{where}: unknown tag {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        raise ContractError(msg)
    low, high = tags.get("min"), tags.get("max")
    if dtype == "timestamp":
        bounds: dict[str, Any] = {"earliest": _relative(low, where), "latest": _relative(high, where)}
    else:
        bounds = {"minimum": _number(low, where), "maximum": _number(high, where)}
    spec = FieldSpec(
        name=definition.name,
        dtype=dtype,
        nullable=_truth(tags.get("nullable", "false"), where),
        allowed=_split(tags.get("allowed", "")),
        categorical=_truth(tags.get("categorical", "false"), where),
        description=definition.description or tags.get("description", ""),
        **bounds,
    )
    if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
        msg = f"{where}: min={spec.minimum} is above max={spec.maximum}"
        raise ContractError(msg)
    return spec


def _relative(text: str | None, where: str) -> timedelta | None:
    if text is None:
        return None
    match = re.fullmatch(r"now(?:([+-])(\w+))?", text.strip())
    if not match:
        msg = f"{where}: {text!r} is not a bound of a timestamp; write now, now+24h or now-90m"
        raise ContractError(msg)
    offset = duration(match[2], where) if match[2] else timedelta(0)
    return -offset if match[1] == "-" else offset


def _number(text: str | None, where: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        msg = f"{where}: {text!r} is not a number"
        raise ContractError(msg) from None


def _truth(text: str, where: str) -> bool:
    if text not in ("true", "false"):
        msg = f"{where}: {text!r} is not true or false"
        raise ContractError(msg)
    return text == "true"


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
