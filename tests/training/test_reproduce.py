"""The same commit, data and moment make the same package, byte for byte; what stands in the way is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import NotReady
from service.package import load_package, read_package
from service.roles import read_roles
from service.settings import ROOT
from tests.bundle import seat_model, settings_in
from training.reproduce import Original, find, obstacles, predictions, sample_of

AS_OF = "2013-03-01"
HERE: dict[str, Any] = {"lock": "l" * 64, "python": "3.11.9", "platform": "linux-x86_64", "packages": {"numpy": "2.0"}}
RAW = {"flights": "f" * 64, "weather": "w" * 64}


def run(module: str, root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the project's modules in a fresh process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    env |= {"PYTHONPATH": str(root)}
    env |= {"UNDERSTUDY_STATE_DIR": str(folder / "state"), "UNDERSTUDY_MODELS_DIR": str(folder / "models")}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


def git(root: Path, *arguments: str) -> None:
    """Run git in a clone."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.slow
def test_two_trainings_in_fresh_processes_make_the_same_package(raw_folder: Path, tmp_path: Path) -> None:
    packages = []
    for name in ("one", "two"):
        done = run("training.train", ROOT, tmp_path / name, "--as-of", AS_OF, "--raw", str(raw_folder))
        assert done.returncode == 0, done.stderr
        models = tmp_path / name / "models"
        seats = read_roles(models).seats
        packages.append(
            {r: (seat.digest, read_package(models / seat.package, seat.digest)) for r, seat in seats.items()}
        )

    one, two = packages
    assert one == two
    for (_, first), (_, second) in zip(one.values(), two.values(), strict=True):
        np.testing.assert_array_equal(predictions(first, sample_of(first)), predictions(second, sample_of(first)))
    record = json.loads(one["primary"][1]["record.json"])
    assert set(record["data"]) == {"raw", "source", "tables"}
    assert {"rows", "plane_record"} <= set(record["data"]["tables"])
    assert str(tmp_path) not in json.dumps(record)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is here, committed, in a repository of its own."""
    root = tmp_path_factory.mktemp("clone") / "project"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "as it is")
    return root


@pytest.mark.slow
def test_a_version_is_trained_again_from_its_record_in_a_clean_checkout(
    clone: Path, raw_folder: Path, tmp_path: Path
) -> None:
    again = ["--version", "1", "--raw", str(raw_folder)]
    trained = run("training.train", clone, tmp_path, "--as-of", AS_OF, "--role", "fallback", "--raw", str(raw_folder))
    assert trained.returncode == 0, trained.stderr
    digest = read_roles(tmp_path / "models").seats["fallback"].digest
    # What is in the folder now is of no account: the commit is.
    (clone / "training/estimator.py").write_text("raise SystemExit('not this one')\n")
    git(clone, "checkout", "--quiet", "--", "training/estimator.py")
    (clone / "training/stray.py").write_text("raise SystemExit('nor this one')\n")

    done = run("training.reproduce", clone, tmp_path, *again)

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "version": "1", "model_equal": True, "predictions_equal": True, "digest": digest,
    }  # fmt: skip
    assert "DIFFERS" not in done.stdout
    assert not list((tmp_path / "models/packages").glob(".*"))

    other = tmp_path / "other"
    shutil.copytree(raw_folder, other)
    with (other / "weather.csv").open("a") as file:
        file.write("\n")
    refused = run("training.reproduce", clone, tmp_path, "--version", "1", "--raw", str(other))
    assert refused.returncode == 2
    assert "raw table weather is" in refused.stderr
    assert "flights" not in refused.stderr

    # Trained from sources that no commit holds, it says so.
    dirty = run(
        "training.train", clone, tmp_path, "--as-of", "2013-03-02", "--role", "fallback", "--raw", str(raw_folder)
    )
    assert dirty.returncode == 0, dirty.stderr
    refused = run("training.reproduce", clone, tmp_path, "--version", "2", "--raw", str(raw_folder))
    assert refused.returncode == 2
    assert "record: dirty" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"commit": None}, "it was trained outside git"),
        ({"dirty": True}, "record: dirty"),
        ({"lock": "m" * 64}, "lock is llllllllllllllll, it was mmmmmmmmmmmmmmmm"),
        ({"python": "3.12.1"}, "python is 3.11.9, it was 3.12.1"),
        ({"platform": "darwin-arm64"}, "platform is linux-x86_64, it was darwin-arm64"),
        ({"packages": {"numpy": "1.0"}}, "package numpy is 2.0, it was 1.0"),
    ],
)
def test_what_stands_in_the_way_is_named(changed: dict[str, Any], said: str) -> None:
    then = {"commit": "c" * 40, "dirty": False, **HERE}

    assert obstacles({"environment": then, "data": {"raw": RAW}}, HERE, RAW) == []
    (found,) = obstacles({"environment": {**then, **changed}, "data": {"raw": RAW}}, HERE, RAW)

    assert said in found


def test_changed_and_missing_tables_are_named() -> None:
    record = {"environment": {"commit": "c" * 40, "dirty": False, **HERE}, "data": {"raw": RAW}}

    found = obstacles(record, HERE, {"flights": "g" * 64})

    assert found == [
        "raw table flights is gggggggggggggggg, it was ffffffffffffffff",
        "raw table weather is missing, it was wwwwwwwwwwwwwwww",
    ]


def test_a_version_is_found_by_its_seat_also_when_another_has_taken_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    old, new = (seat_model(settings, "primary", seed=seed) for seed in (1, 2))

    assert find(settings, "1") == Original(
        "primary", old.digest, read_package(settings.models_dir / old.package, old.digest)
    )
    assert find(settings, "2").digest == new.digest
    assert load_package(settings.models_dir / old.package, "1", old.digest).version == "1"
    shutil.rmtree(settings.models_dir / old.package)
    with pytest.raises(NotReady, match=r"version 1 has package .* restore it"):
        find(settings, "1")


@pytest.mark.slow
def test_a_version_nobody_knows_is_named(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()

    with pytest.raises(NotReady, match="version 9 is neither in"):
        find(settings, "9")
