"""Bad labels, dull features, new categories, a kill, a rival, dead servers."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo import features as definitions
from service.clock import parse_instant
from service.definitions import contracts
from service.errors import DataError
from service.models import open_model
from service.package import Encoder, PackagedModel
from service.roles import SEATS, RolesMoved, read_history, read_roles
from service.settings import ROOT, Settings
from tests.bundle import settings_in
from tests.training.test_gate import fit
from training import aliases as alias_module
from training import register as register_module
from training import train as train_module
from training.aliases import AliasMoved, RegistryFailed, align, read_aliases
from training.dataset import join_features
from training.fitting import Fitted, encode, fit_role, known_rows
from training.register import connect
from training.store import apply, open_store
from training.train import keep, train

pytestmark = pytest.mark.slow
AT = parse_instant("2013-03-01")


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def rows(prepared: Settings) -> pd.DataFrame:
    """The prepared rows."""
    return pd.read_parquet(prepared.state_dir / "rows.parquet")


@pytest.fixture(scope="module")
def joined(prepared: Settings, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows known at the moment, joined for a primary."""
    store = open_store(prepared)
    apply(store, prepared)
    return join_features(store, known_rows(rows, AT), contracts(definitions)["primary"])


@pytest.fixture(scope="module")
def candidates(prepared: Settings) -> list[tuple[Fitted, dict[str, Any]]]:
    """A fallback and a model a day younger to play shadow, with what registering asks of a record."""
    record = {"as_of": AT.isoformat(), "seed": 7, "estimator": "", "parameters": {}, "data_digest": ""}
    fallback = fit(prepared, "fallback", AT)
    return [(fallback, record), (replace(fallback, role="shadow"), {**record, "seed": 8})]


@pytest.mark.parametrize("where", ["before", "in"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_class_are_refused_before_anything_is_fitted(
    where: str, label: float, rows: pd.DataFrame
) -> None:
    start = pd.Timestamp("2013-02-01T00:00Z")
    chosen = rows["event_timestamp"] >= start if where == "in" else rows["label_known_at"] < start
    dull = rows.assign(label=rows["label"].where(~chosen, label))

    with pytest.raises(DataError, match=f"labelled rows {where} the evaluation weeks with 1 outcomes"):
        known_rows(dull, AT)


def test_constant_features_and_a_category_unseen_in_training_are_survived(joined: pd.DataFrame) -> None:
    contract = contracts(definitions)["primary"]
    late = joined["event_timestamp"] >= pd.Timestamp("2013-02-01T00:00Z")
    frame = joined.assign(temp=40.0, wind_gust=None, dep_minute=0)
    frame["carrier"] = frame["carrier"].where(~(late & (frame["carrier"] == "UA")), "ZZ")
    frame = frame.astype({"wind_gust": float})

    fitted = fit_role("primary", frame, contract, AT, 7)

    assert fitted.metrics["auc"] > 0.6
    score = open_model(fitted.signature.format, fitted.model, len(contract.features))
    served = PackagedModel("1", "d", fitted.signature, score)
    known = dict.fromkeys(contract.features) | {"dep_hour": 8, "trip_distance": 900.0}
    (seen, unseen, none) = served.score([{**known, "origin": o} for o in ("EWR", "XXX", None)])
    assert 0 <= seen <= 1
    assert unseen == none
    row = frame.tail(1)
    np.testing.assert_array_equal(
        encode(row, fitted.signature.features, dict(fitted.signature.categories)),
        Encoder(fitted.signature.features, fitted.signature.categories).matrix(row.to_dict("records")),  # type: ignore[arg-type]
    )


# Keeps pickled candidates (ours, made a moment ago), and dies at a named point.
KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from service import roles
from service.roles import read_roles
from service.settings import Settings
from training import aliases, register, train

def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def after(module, name, times=1):
    real, seen = getattr(module, name), []
    def wrapped(*arguments):
        found = real(*arguments)
        seen.append(name)
        if len(seen) == times: die()
        return found
    setattr(module, name, wrapped)

folder = Path(sys.argv[1])
settings = Settings(state_dir=folder / "state", models_dir=folder / "models")
client = register.connect(settings)
known = aliases.align(client, settings.models_dir, print)
{plant}
items = pickle.loads(sys.stdin.buffer.read())
train.keep(settings, client, known, read_roles(settings.models_dir), items, "test", print)
"""
PLANTS = {
    "after packaging": "after(train, 'save_package')",
    "after logging": "after(register, 'log_model', 2)",
    "after registering one": "after(register, 'register')",
    "after registering both": "after(register, 'register', 2)",
    "between history and roles": "roles.replace_text = die",
    "between roles and alias": "aliases.set_alias = die",
    "between two aliases": "after(aliases, 'set_alias')",
}


@pytest.mark.parametrize("point", PLANTS)
def test_a_killed_training_leaves_all_intact_and_the_next_says_what_it_repaired(
    point: str, candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    command = [sys.executable, "-c", KILLED.format(plant=PLANTS[point]), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, input=pickle.dumps(candidates), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    moved = "alias" in point
    registered = {"after registering one": 1, "after registering both": 2, "between history and roles": 2}.get(point, 0)
    assert set(read_roles(settings.models_dir).seats) == ({"fallback", "shadow"} if moved else set())
    said: list[str] = []

    client = connect(settings)
    aliases = align(client, settings.models_dir, said.append)
    again = keep(settings, client, aliases, read_roles(settings.models_dir), candidates, "again", said.append)

    seats = read_roles(settings.models_dir).seats
    assert read_aliases(client) == {
        **dict.fromkeys(SEATS),
        **{r: seats[r].version for r in ("fallback", "shadow")},
    }
    assert set(again) == (set() if moved else {"fallback", "shadow"})
    text = "\n".join(said)
    assert ("repaired: alias" in text) == moved
    assert text.count("repaired: alias") == {"between roles and alias": 2, "between two aliases": 1}.get(point, 0)
    assert ("played by nobody: version" in text) == bool(registered)
    assert ("was cut short" in text) == (point == "between history and roles")
    assert read_history(settings.models_dir)[-1].done
    quiet: list[str] = []
    align(client, settings.models_dir, quiet.append)
    assert quiet == []


def test_of_two_trainings_at_once_one_wins_and_the_other_registers_nothing(
    candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client = connect(settings)
    before, aliases = read_roles(settings.models_dir), read_aliases(client)
    keep(settings, client, aliases, before, candidates[:1], "first", silent)

    with pytest.raises(RolesMoved, match="revision 1, not 0"):
        keep(settings, client, aliases, before, candidates[1:], "second", silent)

    assert [str(v.version) for v in client.search_model_versions("name = 'understudy'")] == ["1"]
    assert read_aliases(client) == {**dict.fromkeys(SEATS), "fallback": "1"}
    assert [move.reason for move in read_history(settings.models_dir)] == ["first"]


def test_two_trainings_started_together_leave_one_pair_of_models(raw_folder: Path, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "UNDERSTUDY_STATE_DIR": str(tmp_path / "state"),
        "UNDERSTUDY_MODELS_DIR": str(tmp_path / "models"),
    }
    command = [sys.executable, "-m", "training.train", "--role", "fallback", "--raw", str(raw_folder), "--as-of"]
    both = [
        subprocess.Popen([*command, day], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for day in ("2013-03-01", "2013-03-02")
    ]

    told = [process.communicate(timeout=200) for process in both]

    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2], told
    loser = next(err for process, (_, err) in zip(both, told, strict=True) if process.returncode)
    assert "roles are at revision 1, not 0" in loser
    assert "Traceback" not in loser
    settings = settings_in(tmp_path)
    client = connect(settings)
    assert len(client.search_model_versions("name = 'understudy'")) == 1
    assert read_aliases(client)["fallback"] == read_roles(settings.models_dir).seats["fallback"].version == "1"


def test_an_alias_moved_by_someone_else_stops_the_move_before_anything_is_registered(
    candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client = connect(settings)
    keep(settings, client, read_aliases(client), read_roles(settings.models_dir), candidates, "first", silent)
    known, roles = align(client, settings.models_dir, silent), read_roles(settings.models_dir)
    client.set_registered_model_alias("understudy", "shadow", "1")
    other = [(item, {**record, "seed": 9}) for item, record in candidates[1:]]

    with pytest.raises(AliasMoved, match="alias shadow points to version 1, not version 2"):
        keep(settings, client, known, roles, other, "second", silent)

    assert read_roles(settings.models_dir) == roles
    assert len(client.search_model_versions("name = 'understudy'")) == 2
    with pytest.raises(AliasMoved, match="never played shadow"):
        align(client, settings.models_dir, silent)


def test_a_registry_that_was_lost_does_not_keep_the_next_training_from_running(
    candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client = connect(settings)
    keep(settings, client, read_aliases(client), read_roles(settings.models_dir), candidates, "first", silent)
    new = settings_in(tmp_path / "new").model_copy(update={"models_dir": settings.models_dir})
    new.state_dir.mkdir(parents=True)
    said: list[str] = []

    found = align(connect(new), settings.models_dir, said.append)

    assert found == dict.fromkeys(SEATS)
    assert [text.partition(" but")[0] for text in said] == ["version 1 plays fallback", "version 2 plays shadow"]


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_mlflow_that_is_down_is_named_before_anything_is_fitted(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    settings = settings_in(tmp_path, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(train_module, "fit_role", lambda *_: pytest.fail("fitted without a registry"))

    with pytest.raises(RegistryFailed, match=r"MLflow at http://127\.0\.0\.1:\d+ failed .*train again"):
        train(settings, AT, "fallback", 7, silent, raw_folder)

    assert not settings.models_dir.exists()


@pytest.mark.parametrize("call", ["register", "log_model"])
def test_an_mlflow_that_dies_in_between_leaves_nothing_seated(
    call: str, candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client, gone = connect(settings), f"http://127.0.0.1:{closed_port()}"
    real, seen = getattr(register_module, call), []

    def dying(*arguments: Any) -> Any:
        seen.append(call)
        if len(seen) == 2:
            # From here on every call goes to a server that is not there.
            raise_from(gone)
        return real(*arguments)

    monkeypatch.setattr(register_module, call, dying)
    with pytest.raises(RegistryFailed, match="train again"):
        keep(settings, client, read_aliases(client), read_roles(settings.models_dir), candidates, "first", silent)
    monkeypatch.undo()

    assert read_roles(settings.models_dir).seats == {}
    assert set(read_aliases(client).values()) == {None}
    keep(settings, client, align(client, settings.models_dir, silent), read_roles(settings.models_dir), candidates,
         "second", silent)  # fmt: skip
    assert set(read_roles(settings.models_dir).seats) == {"fallback", "shadow"}


def raise_from(uri: str) -> None:
    """Make MLflow's own client fail, as it does when a server is away."""
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments()


def test_an_alias_that_cannot_be_moved_is_told_of_and_left_to_the_next_training(
    candidates: list[tuple[Fitted, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    client, said = connect(settings), list[str]()

    def gone(*_: Any) -> None:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(alias_module, "set_alias", gone)
    keep(settings, client, read_aliases(client), read_roles(settings.models_dir), candidates[:1], "first", said.append)
    monkeypatch.undo()

    assert any("alias fallback stays behind" in text for text in said)
    assert align(client, settings.models_dir, said.append)["fallback"] == "1"
    assert "repaired: alias fallback" in said[-1]
