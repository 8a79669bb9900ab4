"""The labels of local Bentos: read from what each one holds, marked as current or not, nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bentoml._internal.bento import BentoStore
from bentoml._internal.configuration.containers import BentoMLContainer

from deploy.bento_labels import align_labels
from deploy.moves import align_registry, mirror
from deploy.promote import Wish, promote
from deploy.rollback import rollback
from service.roles import move_roles, read_roles
from service.settings import Settings
from tests.deploy.promotions import (
    aliases,
    known,
    labels,
    make_bento,
    make_registry,
    seat,
    seated,
    verdict_of,
    write_verdict,
)


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A Bento store of the test's own; its home folder."""
    home = tmp_path / "bentoml"
    (home / "bentos").mkdir(parents=True)
    BentoMLContainer.bento_store.set(BentoStore(home / "bentos"))
    yield home
    BentoMLContainer.bento_store.reset()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A bundle whose shadow may be promoted."""
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    return settings


def test_a_bento_says_which_models_it_holds_and_that_they_play(store: Path, settings: Settings) -> None:
    bento = make_bento(store, "a", settings.models_dir)
    said: list[str] = []

    found = align_labels(read_roles(settings.models_dir), said.append)

    assert found == {"understudy:a": "current"}
    assert labels(bento) == {
        "project": "understudy", "roles": "current", "roles.revision": "3",
        "primary.version": "1", "primary.digest": seat(settings, "primary").digest[:16],
        "fallback.version": "2", "fallback.digest": seat(settings, "fallback").digest[:16],
        "shadow.version": "3", "shadow.digest": seat(settings, "shadow").digest[:16],
    }  # fmt: skip
    assert said == ["Bento understudy:a is labelled current"]


def test_labels_follow_a_promotion_and_its_rollback(store: Path, settings: Settings) -> None:
    before = make_bento(store, "a", settings.models_dir)
    promote(settings, known(), Wish(), silent)
    after = make_bento(store, "bb", settings.models_dir)

    found = mirror(settings, silent).bentos
    assert found == {"understudy:a": "outdated", "understudy:bb": "current"}
    assert labels(before)["primary.version"] == "1"
    assert labels(after)["primary.version"] == "3"
    assert "shadow.version" not in labels(after)
    rollback(settings, known(), silent)

    assert mirror(settings, silent).bentos == {"understudy:a": "current", "understudy:bb": "outdated"}


def test_nothing_else_in_the_file_changes_and_a_second_look_writes_nothing(store: Path, settings: Settings) -> None:
    bento = make_bento(store, "a", settings.models_dir)
    roles = read_roles(settings.models_dir)
    before = yaml.safe_load((bento / "bento.yaml").read_text())

    align_labels(roles, silent)

    after = yaml.safe_load((bento / "bento.yaml").read_text())
    assert {k: v for k, v in after.items() if k != "labels"}.items() >= {
        k: v for k, v in before.items() if k != "labels"
    }.items()
    stamp = (bento / "bento.yaml").stat().st_ino
    assert align_labels(roles, pytest.fail) == {"understudy:a": "current"}
    assert (bento / "bento.yaml").stat().st_ino == stamp


def test_a_bento_without_models_is_labelled_so(store: Path, settings: Settings) -> None:
    bento = make_bento(store, "a", settings.models_dir)
    (bento / "src/models/roles.json").unlink()

    assert align_labels(read_roles(settings.models_dir), silent) == {"understudy:a": "none"}
    assert labels(bento) == {"project": "understudy", "roles": "none"}


def test_a_bento_whose_roles_cannot_be_read_is_told_of_and_the_others_are_labelled(
    store: Path, settings: Settings
) -> None:
    broken, whole = (make_bento(store, name, settings.models_dir) for name in ("a", "bb"))
    (broken / "src/models/roles.json").write_text("{")
    said: list[str] = []

    assert align_labels(read_roles(settings.models_dir), said.append) == {"understudy:bb": "current"}
    assert labels(broken) == {"project": "understudy"}
    assert labels(whole)["roles"] == "current"
    assert "the labels of Bento understudy:a stay behind" in said[0]


@pytest.mark.parametrize("content", ["", "- 1", "name: understudy", "labels: [", json.dumps({"version": "a"})])
def test_a_store_that_cannot_be_read_is_told_of(content: str, store: Path, settings: Settings) -> None:
    bento = make_bento(store, "a", settings.models_dir)
    (bento / "bento.yaml").write_text(content)
    said: list[str] = []

    assert align_labels(read_roles(settings.models_dir), said.append) == {}
    assert "its labels stay behind" in said[0]


def test_without_bentos_there_is_nothing_to_label(store: Path, settings: Settings) -> None:
    assert align_labels(read_roles(settings.models_dir), pytest.fail) == {}
    assert store.exists()


def test_a_seat_whose_version_is_no_number_leaves_its_alias_and_is_told_of(settings: Settings) -> None:
    make_registry(settings)
    by_hand = replace(seat(settings, "shadow"), version="planted")
    move_roles(settings.models_dir, read_roles(settings.models_dir).revision, {"shadow": by_hand}, "by hand")
    said: list[str] = []

    assert align_registry(settings, said.append) == "behind"

    assert aliases(settings)["shadow"] == "3"
    assert said == ["version planted plays shadow but is not in this registry; its alias stays at version 3"]
