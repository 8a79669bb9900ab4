"""The way in: bytes become a checked request, or an answer that tells the caller what to change.

The request's shape is made from the contract: join keys and request inputs, flat, plus an optional request id.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from service.clock import Clock, as_utc
from service.contract import Contract, FieldSpec, shown
from service.errors import BadRequest, problem

RequestId = Annotated[
    str, Field(pattern=r"^[\x21-\x7e]{1,128}$", description="Your id of this request; made when absent.")
]
_TYPES: dict[str, Any] = {"float": float, "int": int, "str": str, "bool": bool, "timestamp": AwareDatetime}
_INT64 = (-(2**63), 2**63 - 1)
_NOUNS = {
    "float": "a finite number",
    "int": "a whole number",
    "str": "a string",
    "bool": "true or false",
    "timestamp": "an ISO 8601 time with offset",
}


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("label_type", "Input should be 0 or 1, not true or false")
    return value


class Label(BaseModel):
    """The ground truth of one prediction."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    request_id: RequestId
    label: Annotated[Literal[0, 1], BeforeValidator(_number)] = Field(
        description="The truth: 1 when it happened, 0 when not."
    )
    known_at: AwareDatetime = Field(description="When it became known, ISO 8601 with offset.")


def request_model(contract: Contract) -> type[BaseModel]:
    """Make the pydantic model of a contract's flat request (strict, no unknown fields, no NaN or Infinity)."""
    fields: dict[str, Any] = {spec.name: _field(spec) for spec in contract.request_fields}
    fields["request_id"] = (RequestId | None, None)
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    with warnings.catch_warnings():
        # Nothing is asked of a parsed request but its fields: one may be called `copy`.
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
        return create_model("PredictRequest", __config__=config, **fields)


def _field(spec: FieldSpec) -> tuple[Any, FieldInfo]:
    kind = Literal[spec.allowed] if spec.allowed else _TYPES[spec.dtype]
    low, high = spec.minimum, spec.maximum
    if spec.dtype == "int":
        # A wider whole number fits neither the online store nor the log.
        low, high = _INT64[0] if low is None else low, _INT64[1] if high is None else high
    return (kind | None if spec.nullable else kind), Field(ge=low, le=high, description=spec.description)


class Door:
    """Checks requests against the contract and the clock."""

    def __init__(self, contract: Contract, clock: Clock, batch_limit: int) -> None:
        self.model = request_model(contract)
        self._specs = {spec.name: spec for spec in contract.request_fields}
        self._timed = [s for s in contract.request_fields if s.earliest is not None or s.latest is not None]
        self._clock = clock
        self._batch_limit = batch_limit

    def one(self, body: bytes) -> dict[str, Any]:
        """Parse one request.

        Raises:
            BadRequest: 400 for malformed JSON, 422 naming each wrong field.
        """
        try:
            parsed = self.model.model_validate_json(body)
        except ValidationError as error:
            raise self._explain(error) from None
        values = {name: _plain(name, value) for name, value in parsed.__dict__.items()}
        if problems := self._limits(values):
            raise BadRequest(problems)
        return values

    def rows(self, body: bytes) -> list[bytes]:
        """Split a list body into its rows, unchecked.

        Raises:
            BadRequest: 400 for malformed JSON, 422 when it is no list, is empty, or is too long.
        """
        try:
            rows = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequest([problem("body", "", f"is not JSON: {error}")], 400) from None
        if not isinstance(rows, list) or not 1 <= len(rows) <= self._batch_limit:
            found = f"a list of {len(rows)}" if isinstance(rows, list) else type(rows).__name__
            raise BadRequest([problem("body", "", f"is {found}; send a list of 1 to {self._batch_limit} objects")])
        return _encoded(rows)

    def labels(self, body: bytes) -> list[Label]:
        """Parse ground truths: one object, or a list of them; all or nothing.

        Raises:
            BadRequest: as :meth:`rows`, naming row and field.
        """
        rows = [body] if body.lstrip()[:1] == b"{" else self.rows(body)
        return [_label(row, f"[{number}]." if len(rows) > 1 else "") for number, row in enumerate(rows)]

    def _explain(self, error: ValidationError) -> BadRequest:
        errors = error.errors()
        if errors[0]["type"] == "json_invalid":
            reason = errors[0].get("ctx", {}).get("error", "")
            return BadRequest([problem("body", "", f"is not JSON: {reason}; send one flat object")], 400)
        return BadRequest([_problem_of(e, self._specs.get(str(e["loc"][0])) if e["loc"] else None) for e in errors])

    def _limits(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        problems = []
        now = self._clock.now() if self._timed else None
        for spec in self._timed:
            at = values[spec.name]
            if at is None or now is None:
                continue
            if spec.earliest is not None and at < now + spec.earliest:
                limit = (now + spec.earliest).isoformat()
                problems.append(problem(spec.name, at.isoformat(), f"is before {limit}; send a later time"))
            if spec.latest is not None and at > now + spec.latest:
                limit = (now + spec.latest).isoformat()
                problems.append(problem(spec.name, at.isoformat(), f"is after {limit}; send an earlier time"))
        return problems


def expected(spec: FieldSpec) -> str:
    """Say in words what a field takes: ``a finite number from 1 to 6000``."""
    if spec.allowed:
        return f"one of {', '.join(spec.allowed)}"
    text = _NOUNS[spec.dtype]
    if spec.minimum is not None:
        text += f" from {shown(spec.minimum)}"
    if spec.maximum is not None:
        text += f" to {shown(spec.maximum)}" if spec.minimum is not None else f" up to {shown(spec.maximum)}"
    return text + (" or null" if spec.nullable else "")


def _encoded(rows: list[Any]) -> list[bytes]:
    try:
        return [orjson.dumps(row) for row in rows]
    except orjson.JSONEncodeError:
        raise BadRequest([problem("body", "", "is nested too deeply; send a list of flat objects")]) from None


def _label(row: bytes, prefix: str) -> Label:
    try:
        label = Label.model_validate_json(row)
    except ValidationError as error:
        raise BadRequest([_problem_of(e, None, prefix) for e in error.errors()]) from None
    return label.model_copy(update={"known_at": _plain(prefix + "known_at", label.known_at)})


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    try:
        return as_utc(value)
    except OverflowError:
        raise BadRequest([problem(name, value.isoformat(), "is no time in UTC; send one after year 1")]) from None


def _problem_of(error: Mapping[str, Any], spec: FieldSpec | None, prefix: str = "") -> dict[str, str]:
    field = prefix + ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return problem(field, "", f"is missing; send {expected(spec)}" if spec else "is missing; send it")
    if error["type"] == "extra_forbidden":
        return problem(field, error["input"], "is not a field of this request; remove it")
    if spec is None:
        return problem(field or "body", error["input"], f"is wrong: {error['msg']}")
    return problem(field, error["input"], f"is wrong ({error['msg']}); send {expected(spec)}")
