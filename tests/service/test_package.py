"""Packages and roles: nothing altered is loaded, nothing half written is seen, one mover wins."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from service.errors import NotReady, PackageError
from service.package import FILES, Encoder, load_package, read_package
from service.roles import Role, RolesMoved, Seat, load_role, move_roles, read_roles
from tests.bundle import TOYS, primary_contract, seat_model, settings_in


def test_a_seated_model_is_loaded_and_scores(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)

    model = load_role(settings.models_dir, "primary")

    (score,) = model.score([{"origin": "EWR", "temp": 50.0}])
    assert (model.version, model.digest) == ("1", seat.digest)
    assert 0 <= score <= 1


@pytest.mark.parametrize("name", ["model.txt", *FILES, "manifest.json"])
def test_any_altered_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    path = settings.models_dir / seat.package / name
    path.write_bytes(path.read_bytes() + b" ")

    with pytest.raises(PackageError, match="altered"):
        load_role(settings.models_dir, "primary")


@pytest.mark.parametrize("estimator", sorted(TOYS))
def test_one_altered_byte_of_any_models_file_is_refused(tmp_path: Path, estimator: str) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1, estimator=estimator)
    (path,) = (settings.models_dir / seat.package).glob("model.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(PackageError, match=rf"{path.name}: SHA-256 differs"):
        load_role(settings.models_dir, "primary")


def forge(folder: Path, name: str, content: bytes, *, called: str | None = None) -> str:
    """Replace a package's file and make its manifest agree; returns the new digest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    manifest["files"][called or name] = hashlib.sha256(content).hexdigest()
    (folder / (called or name)).write_bytes(content)
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("estimator", "name"),
    [("lightgbm", name) for name in ("model.txt", *FILES)]
    + [("xgboost", "model.ubj"), ("logistic", "model.skops"), ("logistic_onnx", "model.onnx")],
)
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_by_any_name_is_refused_even_where_the_digests_agree(
    tmp_path: Path, estimator: str, name: str, protocol: int
) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1, estimator=estimator)
    folder = settings.models_dir / seat.package
    digest = forge(folder, name, pickle.dumps(Trap(str(tmp_path / "sprung")), protocol))

    with pytest.raises(PackageError, match=name):
        load_package(folder, "1", digest)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(("name", "called"), [("contract.json", "other.json"), ("model.txt", "../model.txt")])
def test_a_manifest_that_lists_other_files_is_refused(tmp_path: Path, name: str, called: str) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    folder = settings.models_dir / seat.package
    digest = forge(folder, name, b"{}", called=called)

    with pytest.raises(PackageError, match="the manifest lists"):
        load_package(folder, "1", digest)


def test_a_package_of_the_format_before_names_the_command(tmp_path: Path) -> None:
    raw = b'{"format": 1, "files": {}}'
    (tmp_path / "manifest.json").write_bytes(raw)

    with pytest.raises(PackageError, match=r"package format 1, this service reads 2; run `make train`"):
        load_package(tmp_path, "1", hashlib.sha256(raw).hexdigest())


def test_a_signature_of_another_shape_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    folder = settings.models_dir / seat.package
    digest = forge(folder, "signature.json", b'{"estimator": "lightgbm"}')

    with pytest.raises(PackageError, match=r"signature\.json is not one of package format 2"):
        load_package(folder, "1", digest)


def test_a_model_that_does_not_fit_its_signature_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    folder = settings.models_dir / seat.package
    signature = json.loads((folder / "signature.json").read_text())
    digest = forge(folder, "signature.json", json.dumps({**signature, "features": signature["features"][1:]}).encode())

    with pytest.raises(PackageError, match=r"model\.txt cannot be read as a lightgbm model of \d+ features"):
        load_package(folder, "1", digest)


def test_the_contract_a_model_was_trained_on_is_kept(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)

    kept = json.loads(read_package(settings.models_dir / seat.package, seat.digest)["contract.json"])

    assert kept == primary_contract().record()


@pytest.mark.parametrize("name", ["model.txt", "manifest.json"])
def test_a_missing_file_is_refused_with_the_command_that_makes_it(tmp_path: Path, name: str) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    (settings.models_dir / seat.package / name).unlink()

    with pytest.raises(PackageError, match="make train"):
        load_role(settings.models_dir, "primary")


def test_another_packages_folder_cannot_stand_in(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first, second = seat_model(settings, "primary", seed=1), seat_model(settings, "shadow", seed=2)

    with pytest.raises(PackageError, match=f"expects {first.digest[:16]}"):
        load_package(settings.models_dir / second.package, "1", first.digest)


@pytest.mark.parametrize("estimator", sorted(TOYS))
def test_the_same_training_gives_the_same_digest(tmp_path: Path, estimator: str) -> None:
    one = seat_model(settings_in(tmp_path / "a"), "primary", seed=5, estimator=estimator)
    two = seat_model(settings_in(tmp_path / "b"), "primary", seed=5, estimator=estimator)

    assert one.digest == two.digest


def test_an_empty_role_names_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"no model plays shadow .* run `make train` first"):
        load_role(tmp_path, "shadow")


def test_a_damaged_roles_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "roles.json").write_text("{")

    with pytest.raises(NotReady, match=r"roles\.json cannot be read"):
        read_roles(tmp_path)


def test_roles_move_only_from_the_state_that_was_read(tmp_path: Path) -> None:
    seat = Seat("1", "d", "packages/d")
    move_roles(tmp_path, 0, {"primary": seat})

    with pytest.raises(RolesMoved, match="revision 1, not 0"):
        move_roles(tmp_path, 0, {"primary": Seat("2", "e", "packages/e")})
    assert read_roles(tmp_path).seats == {"primary": seat}


def test_of_many_movers_one_wins(tmp_path: Path) -> None:
    outcomes: list[str] = []

    def move(number: int) -> None:
        try:
            move_roles(tmp_path, 0, {"primary": Seat(str(number), "d", "p")})
            outcomes.append("won")
        except RolesMoved:
            outcomes.append("told")

    threads = [threading.Thread(target=move, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["told"] * 7 + ["won"]
    assert json.loads((tmp_path / "roles.json").read_text())["revision"] == 1


@pytest.mark.parametrize("role", ["primary", "fallback"])
def test_emptying_a_role_leaves_the_others(tmp_path: Path, role: Role) -> None:
    seat = Seat("1", "d", "p")
    move_roles(tmp_path, 0, {"primary": seat, "fallback": seat})

    left = move_roles(tmp_path, 1, {role: None})

    assert set(left.seats) == {"primary", "fallback"} - {role}


def test_categories_keep_the_training_order_and_unseen_ones_are_missing() -> None:
    encoder = Encoder(["x", "c"], {"c": ("b", "a")})

    matrix = encoder.matrix([{"x": 1, "c": "a"}, {"x": None, "c": "b"}, {"c": "new"}])

    assert matrix[:, 1].tolist()[:2] == [1.0, 0.0]
    assert math.isnan(matrix[2, 1])
    assert [math.isnan(v) for v in matrix[:, 0]] == [False, True, True]


def test_two_trainings_that_make_the_same_package_at_once_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        shutil.copytree(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    one = seat_model(settings, "primary", seed=5)

    assert load_package(settings.models_dir / one.package, "1", one.digest).digest == one.digest
    assert [p.name for p in (settings.models_dir / "packages").iterdir()] == [one.digest[:16]]
