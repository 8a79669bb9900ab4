"""Packages and roles: nothing altered is loaded, nothing half written is seen, one mover wins."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from service.errors import NotReady, PackageError
from service.package import Encoder, load_package
from service.roles import Role, RolesMoved, Seat, load_role, move_roles, read_roles
from tests.bundle import seat_model, settings_in


def test_a_seated_model_is_loaded_and_scores(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)

    model = load_role(settings.models_dir, "primary")

    (score,) = model.score([{"origin": "EWR", "temp": 50.0}])
    assert (model.version, model.digest) == ("1", seat.digest)
    assert 0 <= score <= 1


@pytest.mark.parametrize("name", ["model.txt", "signature.json", "baseline.json", "record.json", "manifest.json"])
def test_any_altered_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings = settings_in(tmp_path)
    seat = seat_model(settings, "primary", seed=1)
    path = settings.models_dir / seat.package / name
    path.write_text(path.read_text() + " ")

    with pytest.raises(PackageError, match="altered"):
        load_role(settings.models_dir, "primary")


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


def test_the_same_training_gives_the_same_digest(tmp_path: Path) -> None:
    one = seat_model(settings_in(tmp_path / "a"), "primary", seed=5)
    two = seat_model(settings_in(tmp_path / "b"), "primary", seed=5)

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
