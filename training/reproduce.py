"""Trains a version again from its record, in a clean checkout of its commit, and compares what comes out.

Nothing is kept: the training has state, models and registry of its own in a temporary folder. It runs in this
interpreter's environment, which therefore has to be the one the version was trained in.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from service.errors import NotReady, UnderstudyError
from service.models import Matrix, open_model
from service.package import FILES, Signature, read_package
from service.progress import Progress, Say
from service.roles import ROLES, Role, read_history, read_roles
from service.settings import PREFIX, ROOT, Settings, settings
from training import source
from training.fitting import encode
from training.record import environment, sha256

_SHOWN = 15


class NotReproducible(UnderstudyError):
    """A version cannot be trained again here; the message names every reason."""


@dataclass(frozen=True)
class Original:
    """A version as it was kept.

    Attributes:
        files: contents of its package, verified.
    """

    role: Role
    digest: str
    files: Mapping[str, bytes]

    @property
    def record(self) -> dict[str, Any]:
        """Where it came from."""
        return dict(json.loads(self.files["record.json"]))


def find(settings_: Settings, version: str) -> Original:
    """Return a version's package: by the roles and their history, or else by MLflow's tags.

    Raises:
        NotReady: when neither knows the version, or its package is not in the models folder.
        PackageError: when the package was altered.
    """
    role, digest = _seated(settings_.models_dir, version) or _registered(settings_, version)
    folder = settings_.models_dir / "packages" / digest[:16]
    if not folder.exists():
        msg = f"version {version} has package {digest[:16]}, which is not in {folder.parent}; restore it there"
        raise NotReady(msg)
    return Original(role, digest, read_package(folder, digest))


def _seated(models_dir: Path, version: str) -> tuple[Role, str] | None:
    moves = [read_roles(models_dir).seats, *(move.after for move in reversed(read_history(models_dir)) if move.done)]
    found = ((role, seat.digest) for seats in moves for role, seat in seats.items() if seat and seat.version == version)
    return next(found, None)


def _registered(settings_: Settings, version: str) -> tuple[Role, str]:
    from mlflow.exceptions import MlflowException

    from service.feature_store import project
    from training.register import connect

    try:
        client = connect(settings_)
        tags = client.get_run(client.get_model_version(project(), version).run_id).data.tags
        return next(role for role in ROLES if role == tags["role"]), tags["package.digest"]
    except (MlflowException, KeyError, StopIteration) as error:
        msg = f"version {version} is neither in {settings_.models_dir} nor in MLflow ({error}); see its registry"
        raise NotReady(msg) from None


def obstacles(record: Mapping[str, Any], here: Mapping[str, Any], raw: Mapping[str, str]) -> list[str]:
    """Say what keeps a version from being trained again; pure.

    Args:
        here: what :func:`training.record.environment` says now.
        raw: SHA-256 by raw table, of the data there is now.
    """
    then, found = record["environment"], []
    if not then.get("commit"):
        found.append("it was trained outside git: no commit to check out")
    elif then.get("dirty"):
        found.append(f"it was trained from sources that differed from commit {then['commit'][:12]} (record: dirty)")
    for name in ("lock", "python", "platform"):
        if then.get(name) != here[name]:
            found.append(f"{name} is {_short(here[name])}, it was {_short(then.get(name))}")
    found += _differences("package", then.get("packages", {}), here["packages"])
    return found + _differences("raw table", record["data"]["raw"], raw)


def _differences(kind: str, then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return [f"{kind} {name} is {_short(now.get(name))}, it was {_short(then.get(name))}" for name in names]


def _short(value: Any) -> str:
    return "missing" if value is None else str(value)[:16]


def check_out(commit: str, folder: Path) -> None:
    """Make a clean checkout of a commit; this tree and its git folder are left alone.

    Raises:
        NotReproducible: when the commit is not in this repository.
    """
    for command in (
        ["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(folder)],
        ["git", "-C", str(folder), "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", commit],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            msg = f"commit {commit[:12]} cannot be checked out of {ROOT} ({last}); fetch the branch it is on"
            raise NotReproducible(msg)


def train_again(original: Original, checkout: Path, folder: Path, raw: Path | None) -> Path:
    """Train in a fresh process in a checkout and return the models folder.

    Raises:
        NotReproducible: when that training fails.
    """
    record = original.record
    command = [sys.executable, "-m", "training.train", "--as-of", record["as_of"], "--role", original.role]
    command += ["--seed", str(record["seed"]), "--estimator", record["estimator"]]
    command += ["--raw", str(raw.resolve())] if raw else []
    forced = record.get("gate_passed_over")
    command += ["--force-gate", "--reason", forced] if forced else []
    env = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "MLFLOW_"))}
    env |= {"PYTHONPATH": str(checkout)}
    env |= {PREFIX + "STATE_DIR": str(folder / "state"), PREFIX + "MODELS_DIR": str(folder / "models")}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_SHOWN:])
        msg = f"training again failed with exit code {done.returncode}:\n{tail}"
        raise NotReproducible(msg)
    return folder / "models"


def sample_of(files: Mapping[str, bytes]) -> pd.DataFrame:
    """Read a package's reference sample."""
    return pd.read_parquet(io.BytesIO(files["reference.parquet"]))


def predictions(files: Mapping[str, bytes], sample: pd.DataFrame) -> Matrix:
    """Score a reference sample with a package's model."""
    signature = Signature.parse(json.loads(files["signature.json"]))
    score = open_model(signature.format, _model(files)[1], len(signature.features))
    return score(encode(sample, signature.features, dict(signature.categories)))


def _model(files: Mapping[str, bytes]) -> tuple[str, bytes]:
    return next((name, data) for name, data in files.items() if name not in FILES)


def reproduce(settings_: Settings, version: str, raw: Path | None, say: Say) -> tuple[dict[str, Any], bool]:
    """Train a version again and compare; return what to report and whether every file came out the same.

    Raises:
        NotReproducible: when that cannot be tried here.
        UnderstudyError: when the version cannot be found or read.
    """
    original = find(settings_, version)
    record = original.record
    hashes = {name: sha256(path) for name, path in sorted(source.raw_files(raw).items())}
    if found := obstacles(record, environment(), hashes):
        msg = f"version {version} cannot be trained again here:\n" + "\n".join(f"  {text}" for text in found)
        raise NotReproducible(msg)
    commit = record["environment"]["commit"]
    say(f"version {version}: {original.role} as of {record['as_of']}, commit {commit[:12]}, {record['estimator']}")
    with tempfile.TemporaryDirectory(prefix="reproduce-") as name:
        checkout = Path(name, "checkout")
        check_out(commit, checkout)
        say("checked out; training")
        models = train_again(original, checkout, Path(name), raw)
        seat = read_roles(models).seats[original.role]
        again = Original(original.role, seat.digest, read_package(models / seat.package, seat.digest))
    for part in sorted({*original.files, *again.files}):
        say(f"{part:20} {'equal' if original.files.get(part) == again.files.get(part) else 'DIFFERS'}")
    for text in _record_differences(record, again.record):
        say(f"record.json: {text}")
    sample = sample_of(original.files)
    before, after = predictions(original.files, sample), predictions(again.files, sample)
    same = bool(np.array_equal(before, after, equal_nan=True))
    say(f"predictions on {len(sample):,} reference rows: {'equal' if same else _gap(before, after)}")
    result = {
        "version": version,
        "model_equal": _model(original.files) == _model(again.files),
        "predictions_equal": same,
        "digest": again.digest,
    }
    return result, again.digest == original.digest


def _record_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for group in ("environment", "data"):
        parts = {name for side in (then, now) for name in side[group]}
        for part in sorted(parts):
            a, b = then[group].get(part), now[group].get(part)
            if isinstance(a, dict) and isinstance(b, dict):
                found += _differences(f"{group}.{part}", a, b)
            elif a != b:
                found.append(f"{group}.{part} is {_short(b)}, it was {_short(a)}")
    rest = sorted({*then, *now} - {"environment", "data"})
    return found + [
        f"{name} is {now.get(name)}, it was {then.get(name)}" for name in rest if then.get(name) != now.get(name)
    ]


def _gap(before: Matrix, after: Matrix) -> str:
    return f"DIFFER, by up to {float(np.nanmax(np.abs(before - after))):.3g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object; exit code 1 when something came out otherwise."""
    parser = argparse.ArgumentParser(prog="make reproduce", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", required=True, help="registered version, a number")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    args = parser.parse_args(argv)
    say = Progress(sys.stdout)
    try:
        result, equal = reproduce(settings(), args.version, args.raw, say)
    except UnderstudyError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
