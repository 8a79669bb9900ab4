"""Keeps the values of named fields out of the prediction log: removed, or replaced by keyed pseudonyms.

Applied to the record on its way to disk, and nowhere else: models, shadows and callers get what was asked and found.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr

from service.contract import Contract, FieldSpec
from service.errors import NotReady
from service.prediction_log import Log
from service.settings import PREFIX

logger = logging.getLogger("understudy")

# A shorter key can be found by trying all of them against one known value.
LEAST_KEY = 16
# Whole numbers that every reader of JSON keeps exactly (IEEE 754 doubles).
_INT_BITS = 53

Replace = Callable[[Any], Any]


@dataclass(frozen=True)
class Redaction:
    """What is done to a record.

    Attributes:
        names: request fields and features whose values are not written, sorted.
        replace: for those that are identifiers, and when there is a key, what is written instead.
        keyed: views whose join keys are among the names: what they say of a key is not written either.
    """

    names: tuple[str, ...]
    replace: Mapping[str, Replace]
    keyed: frozenset[str]

    def applied(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a prediction record without the values; the record itself stays as it is."""
        return {
            **record,
            "request": self._without(record["request"]),
            "vector": self._without(record["vector"]),
            "violations": [self._silent(violation) for violation in record["violations"]],
            "redacted": self.names,
        }

    def _without(self, values: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(values)
        for name in self.names:
            if name in kept:
                replace = self.replace.get(name)
                if replace is None:
                    del kept[name]
                else:
                    kept[name] = replace(kept[name])
        return kept

    def _silent(self, violation: Mapping[str, str]) -> Mapping[str, str]:
        # Messages quote what they are about: a feature's value, or the keys a view holds nothing for.
        feature, kind = violation["feature"], violation["kind"]
        if feature not in self.names and not (feature in self.keyed and kind == "missing"):
            return violation
        return {"feature": feature, "kind": kind, "message": f"{feature}: {kind} (value redacted)"}


class RedactedLog:
    """A log that hands records on without the values of some fields."""

    def __init__(self, log: Log, redaction: Redaction) -> None:
        self._log = log
        self._redaction = redaction

    def append(self, record: Mapping[str, Any]) -> bool:
        """Keep one prediction record without those values; False when it could not be kept."""
        return self._log.append(self._redaction.applied(record))

    def extend(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Keep prediction records without those values; returns how many were kept."""
        return self._log.extend([self._redaction.applied(record) for record in records])

    def close(self) -> None:
        """Release what is held."""
        self._log.close()


def redacted(log: Log, contract: Contract, names: str, key: SecretStr) -> Log:
    """Return the log predictions go to: the same one when nothing is to be redacted.

    Args:
        names: the setting ``redact``.
        key: the setting ``redact_key``.

    Raises:
        NotReady: as :func:`redaction_of`.
    """
    redaction = redaction_of(contract, names, key)
    if redaction is None:
        return log
    logger.info("the prediction log is written without the values of %s", ", ".join(redaction.names))
    return RedactedLog(log, redaction)


def redaction_of(contract: Contract, names: str, key: SecretStr) -> Redaction | None:
    """Read the two settings; None when nothing is named.

    A name takes with it whatever is computed from it at request time: it may be the same value under another name.

    Raises:
        NotReady: when a name is no field of the request and no feature, or the key is too short or for nothing.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    secret = key.get_secret_value().encode()
    if secret and not wanted:
        msg = f"{PREFIX}REDACT_KEY is set, but {PREFIX}REDACT names nothing to redact; name fields, or remove the key"
        raise NotReady(msg)
    if 0 < len(secret) < LEAST_KEY:
        msg = f"{PREFIX}REDACT_KEY has {len(secret)} bytes (at least {LEAST_KEY}); `openssl rand -hex 32` makes one"
        raise NotReady(msg)
    specs = {spec.name: spec for spec in (*contract.request_fields, *contract.fields)}
    if unknown := sorted(wanted - specs.keys()):
        msg = f"{PREFIX}REDACT names {', '.join(unknown)}, no request field and no feature; known: {', '.join(specs)}"
        raise NotReady(msg)
    if not wanted:
        return None
    hidden = tuple(sorted(_with_computed(contract, wanted) & specs.keys()))
    keys = {spec.name for spec in contract.keys}
    makers = {name: maker for name in hidden if secret and (maker := _pseudonym(specs[name], keys, secret))}
    keyed = frozenset(view.name for view in contract.views if set(view.keys) & set(hidden))
    return Redaction(hidden, makers, keyed)


def _with_computed(contract: Contract, names: set[str]) -> set[str]:
    found = set(names)
    while more := {f for step in contract.on_demand if found & set(step.inputs) for f in step.features} - found:
        found |= more
    return found


def _pseudonym(spec: FieldSpec, keys: set[str], secret: bytes) -> Replace | None:
    """What replaces an identifier; None for a quantity, whose pseudonym would mean nothing."""
    if spec.dtype == "str":
        return partial(_text, secret, spec.name)
    if spec.dtype == "int" and (spec.categorical or spec.name in keys):
        return partial(_number, secret, spec.name)
    return None


def _text(secret: bytes, name: str, value: Any) -> str | None:
    return None if value is None else f"~{_digest(secret, name, value)[:16].hex()}"


def _number(secret: bytes, name: str, value: Any) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return int.from_bytes(_digest(secret, name, value)[:8], "big") >> (64 - _INT_BITS)


def _digest(secret: bytes, name: str, value: Any) -> bytes:
    """HMAC-SHA-256 (RFC 2104) of field and value, so that equal values of two fields do not look alike."""
    return hmac.digest(secret, f"{name}\0{value}".encode(errors="surrogatepass"), "sha256")
