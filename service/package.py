"""Model packages: a folder of plain files, checked by SHA-256 before anything in it is used.

```
models/packages/<digest>/
    manifest.json      SHA-256 of every other file; its own SHA-256 is the package's digest
    model.*            the model in its library's own format, see ``models.py`` (no pickle anywhere)
    signature.json     feature order, category vocabularies, feature service, contract digest, base rate
    contract.json      the contract it was trained on
    baseline.json      what training saw: statistics per feature, predictions, importance of features
    reference.parquet  up to 20,000 rows of it: features in contract order, time, label, out-of-sample prediction
    record.json        where it came from: data hashes, parameters, seed, environment, metrics
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from service.errors import PackageError
from service.models import FORMATS, Matrix, Score, open_model

FORMAT = 2
# Beside the model's own file.
FILES = ("signature.json", "contract.json", "baseline.json", "reference.parquet", "record.json")


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        format: how the model is kept, one of ``models.FORMATS``.
        service: the Feast feature service it was trained on.
        contract: digest of that service's contract at training time.
        features: input names in model order.
        categories: per categorical input its vocabulary; the position is the code the model was trained with.
        output: ``probability``.
        base_rate: share of positives in training; the safe answer when no model can give one.
    """

    format: str
    service: str
    contract: str
    features: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    output: str
    base_rate: float

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Self:
        """Build from the JSON object of ``signature.json``.

        Raises:
            PackageError: when a field is missing or unknown.
        """
        try:
            tuples = {
                "features": tuple(plain["features"]),
                "categories": {k: tuple(v) for k, v in plain["categories"].items()},
            }
            return cls(**{**plain, **tuples})
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"signature.json is not one of package format {FORMAT} ({error!r}); run `make train`"
            raise PackageError(msg) from None


class Model(Protocol):
    """Anything that scores rows of named values."""

    version: str
    digest: str
    signature: Signature

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return one score per row; rows carry at least the signature's features."""
        ...


class Encoder:
    """Turns named values into the numbers the model was trained on; one encoder for training and serving."""

    def __init__(self, features: Sequence[str], categories: Mapping[str, Sequence[str]]) -> None:
        self._features = tuple(features)
        codes = {name: {v: float(i) for i, v in enumerate(values)} for name, values in categories.items()}
        self._codes: list[tuple[int, Mapping[Any, float]]] = [
            (place, codes[name]) for place, name in enumerate(self._features) if name in codes
        ]

    def matrix(self, rows: Sequence[Mapping[str, Any]]) -> Matrix:
        """Return a float matrix (rows x features); null and unseen categories are NaN."""
        lines = [[row.get(name) for name in self._features] for row in rows]
        for line in lines:
            for place, codes in self._codes:
                line[place] = codes.get(line[place])
        # One conversion for all of them: None becomes NaN.
        return np.array(lines, dtype=np.float64).reshape(len(rows), len(self._features))


class PackagedModel:
    """A model read from a package."""

    def __init__(self, version: str, digest: str, signature: Signature, score: Score) -> None:
        self.version = version
        self.digest = digest
        self.signature = signature
        self._encoder = Encoder(signature.features, signature.categories)
        self._score = score

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the positive class's probability per row."""
        return [float(s) for s in self._score(self._encoder.matrix(rows))]

    def renamed(self, version: str) -> PackagedModel:
        """Return the same model under another version of the registry."""
        return PackagedModel(version, self.digest, self.signature, self._score)


def save_package(
    root: Path,
    model: bytes,
    signature: Signature,
    baseline: Mapping[str, Any],
    record: Mapping[str, Any],
    contract: Mapping[str, Any],
    reference: bytes,
) -> tuple[str, Path]:
    """Write a package below ``root`` and return its digest and folder.

    The folder appears in one rename, so a killed training leaves no half package behind.
    """
    contents = {
        FORMATS[signature.format].file: model,
        "signature.json": _json(asdict(signature)),
        "contract.json": _json(contract),
        "baseline.json": _json(baseline),
        "reference.parquet": reference,
        "record.json": _json(record),
    }
    manifest = _json({"format": FORMAT, "files": {name: _sha(data) for name, data in contents.items()}})
    digest = _sha(manifest)
    target = root / "packages" / digest[:16]
    if target.exists():
        return digest, target
    # A name of its own: two trainings may make the same package at once.
    staging = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(3).hex()}.partial")
    staging.mkdir(parents=True)
    try:
        for name, data in {**contents, "manifest.json": manifest}.items():
            (staging / name).write_bytes(data)
        staging.rename(target)
    except OSError:
        if not target.exists():
            raise
    finally:
        # Gone by its rename, unless that failed.
        shutil.rmtree(staging, ignore_errors=True)
    return digest, target


def load_package(folder: Path, version: str, digest: str) -> PackagedModel:
    """Verify a package and return its model.

    Raises:
        PackageError: when a file is missing, was altered or is not what its name says, the package's or the model's
            format is unknown, or the model's library is not installed.
    """
    contents = read_package(folder, digest)
    try:
        signature = Signature.parse(json.loads(contents["signature.json"]))
        model = next(data for name, data in contents.items() if name not in FILES)
        score = open_model(signature.format, model, len(signature.features))
    except PackageError as error:
        msg = f"{folder}: {error}"
        raise PackageError(msg) from None
    return PackagedModel(version, digest, signature, score)


def read_package(folder: Path, digest: str) -> dict[str, bytes]:
    """Return the verified contents of a package's files.

    Raises:
        PackageError: as :func:`load_package`, but for the model, which is not opened.
    """
    try:
        raw = (folder / "manifest.json").read_bytes()
        manifest = dict(json.loads(raw))
    except (OSError, ValueError, TypeError) as error:
        msg = f"{folder}/manifest.json cannot be read ({error}); run `make train`"
        raise PackageError(msg) from None
    if _sha(raw) != digest:
        msg = (
            f"{folder}: manifest has digest {_sha(raw)[:16]}, roles.json expects {digest[:16]}; the package was altered"
        )
        raise PackageError(msg)
    if manifest.get("format") != FORMAT:
        msg = f"{folder}: package format {manifest.get('format')!r}, this service reads {FORMAT}; run `make train`"
        raise PackageError(msg)
    contents: dict[str, bytes] = {}
    for name in _listed(folder, manifest.get("files", {})):
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            msg = f"{folder}/{name} cannot be read ({error}); run `make train`"
            raise PackageError(msg) from None
        if _sha(contents[name]) != manifest["files"][name]:
            msg = f"{folder}/{name}: SHA-256 differs from the manifest's; the file was altered, restore the package"
            raise PackageError(msg)
        if not _is_what_it_is_called(name, contents[name]):
            msg = f"{folder}/{name} does not hold what its name says; restore the package or run `make train`"
            raise PackageError(msg)
    return contents


def _listed(folder: Path, names: Mapping[str, str]) -> tuple[str, ...]:
    models = sorted(set(names) - set(FILES))
    if set(FILES) - set(names) or len(models) != 1 or models[0] not in {form.file for form in FORMATS.values()}:
        msg = (
            f"{folder}: the manifest lists {', '.join(sorted(names))}; a package of format {FORMAT} is made of "
            f"{', '.join(FILES)} and one model"
        )
        raise PackageError(msg)
    return (*models, *FILES)


def _is_what_it_is_called(name: str, data: bytes) -> bool:
    if name.endswith(".json"):
        try:
            return isinstance(json.loads(data), dict)
        except ValueError:
            return False
    # A service never reads the sample, so it needs no library that could.
    return name != "reference.parquet" or data[:4] == data[-4:] == b"PAR1"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
