"""Model packages: a folder of plain files, checked by SHA-256 before anything in it is used.

```
models/packages/<digest>/
    manifest.json    SHA-256 of every other file; its own SHA-256 is the package's digest
    model.txt        LightGBM's text format (no pickle anywhere)
    signature.json   feature order, category vocabularies, feature service, contract digest, base rate
    baseline.json    what training saw: per-feature statistics, histogram of predictions
    record.json      where it came from: data hashes, parameters, seed, environment, metrics
```
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from service.errors import PackageError

FORMAT = 1
FILES = ("model.txt", "signature.json", "baseline.json", "record.json")


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        estimator: format of ``model.txt``; only ``lightgbm`` so far.
        service: the Feast feature service it was trained on.
        contract: digest of that service's contract at training time.
        features: input names in model order.
        categories: per categorical input its vocabulary; the position is the code the model was trained with.
        output: ``probability``.
        base_rate: share of positives in training; the safe answer when no model can give one.
    """

    estimator: str
    service: str
    contract: str
    features: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    output: str
    base_rate: float

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Self:
        """Build from the JSON object of ``signature.json``."""
        return cls(
            **{
                **plain,
                "features": tuple(plain["features"]),
                "categories": {k: tuple(v) for k, v in plain["categories"].items()},
            }
        )


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
        self._codes = {name: {v: float(i) for i, v in enumerate(values)} for name, values in categories.items()}

    def matrix(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
        """Return a float matrix (rows x features); null and unseen categories are NaN."""
        out = np.full((len(rows), len(self._features)), math.nan)
        for j, name in enumerate(self._features):
            codes = self._codes.get(name)
            for i, row in enumerate(rows):
                value = row.get(name)
                if value is not None:
                    out[i, j] = value if codes is None else codes.get(value, math.nan)
        return out


class LightGBMModel:
    """A LightGBM booster read from its text format."""

    def __init__(self, version: str, digest: str, signature: Signature, text: str) -> None:
        self.version = version
        self.digest = digest
        self.signature = signature
        import lightgbm

        self._encoder = Encoder(signature.features, signature.categories)
        self._booster = lightgbm.Booster(model_str=text)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the positive class's probability per row.

        One thread: a service scores few rows at a time and several runners share the machine.
        """
        return [float(s) for s in self.score_matrix(self._encoder.matrix(rows))]

    def score_matrix(self, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Score encoded rows (rows x features); for whole frames."""
        return np.asarray(self._booster.predict(matrix, num_threads=1), dtype=np.float64)


def save_package(
    root: Path, model: str, signature: Signature, baseline: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[str, Path]:
    """Write a package below ``root`` and return its digest and folder.

    The folder appears in one rename, so a killed training leaves no half package behind.
    """
    contents = {
        "model.txt": model,
        "signature.json": _json(asdict(signature)),
        "baseline.json": _json(baseline),
        "record.json": _json(record),
    }
    manifest = _json({"format": FORMAT, "files": {name: _sha(text.encode()) for name, text in contents.items()}})
    digest = _sha(manifest.encode())
    target = root / "packages" / digest[:16]
    if target.exists():
        return digest, target
    staging = target.with_name(f".{target.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    for name, text in {**contents, "manifest.json": manifest}.items():
        (staging / name).write_text(text)
    staging.rename(target)
    return digest, target


def load_package(folder: Path, version: str, digest: str) -> LightGBMModel:
    """Verify a package and return its model.

    Raises:
        PackageError: when a file is missing, was altered, is not listed, or the format is unknown.
    """
    contents = read_package(folder, digest)
    signature = Signature.parse(json.loads(contents["signature.json"]))
    if signature.estimator != "lightgbm":
        msg = f"{folder}: estimator {signature.estimator!r} is unknown (known: lightgbm); upgrade the service"
        raise PackageError(msg)
    import lightgbm

    try:
        return LightGBMModel(version, digest, signature, contents["model.txt"].decode())
    except lightgbm.basic.LightGBMError as error:
        msg = f"{folder}/model.txt cannot be read as LightGBM text: {error}"
        raise PackageError(msg) from None


def read_package(folder: Path, digest: str) -> dict[str, bytes]:
    """Return the verified contents of a package's files.

    Raises:
        PackageError: as :func:`load_package`.
    """
    try:
        raw = (folder / "manifest.json").read_bytes()
        manifest = json.loads(raw)
    except (OSError, ValueError) as error:
        msg = f"{folder}/manifest.json cannot be read ({error}); run `make train`"
        raise PackageError(msg) from None
    if _sha(raw) != digest:
        msg = (
            f"{folder}: manifest has digest {_sha(raw)[:16]}, roles.json expects {digest[:16]}; the package was altered"
        )
        raise PackageError(msg)
    if manifest.get("format") != FORMAT:
        msg = f"{folder}: package format {manifest.get('format')!r}, this service reads {FORMAT}"
        raise PackageError(msg)
    contents: dict[str, bytes] = {}
    for name in FILES:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            msg = f"{folder}/{name} cannot be read ({error}); run `make train`"
            raise PackageError(msg) from None
        if _sha(contents[name]) != manifest["files"].get(name):
            msg = f"{folder}/{name}: SHA-256 differs from the manifest's; the file was altered, restore the package"
            raise PackageError(msg)
    return contents


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
