"""A small bundle with a shadow to promote, the verdict that allows it, an MLflow registry and a Bento beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import yaml

from feature_repo import features as definitions
from monitoring.evidence import Version
from monitoring.report import plain
from monitoring.verdict import Reason, Verdict
from service import VERSION
from service.clock import write_clock
from service.contract import Contract
from service.definitions import contracts
from service.roles import Role, Seat, read_history, read_roles
from service.settings import ROOT, Settings
from tests.bundle import primary_contract, seat_model, settings_in

AT = datetime(2013, 10, 15, tzinfo=UTC)
GAIN = Reason("gain", "Gain", "pass", False, True, 31.5, 20.0, "at least", "the gain is 31.5", "", "compare.html#gain")


def known() -> dict[str, Contract]:
    """The contracts of the real definitions."""
    return contracts(definitions)


def seated(folder: Path, slot: str = "shadow", **more: Any) -> Settings:
    """Seat a primary (version 1), a fallback (2) and a shadow (3), the clock standing at ``AT``."""
    write_clock(folder / "clock", AT)
    settings = settings_in(folder, **{"clock": str(folder / "clock"), **more})
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    for seed, role in enumerate(("primary", "fallback", slot), 1):
        seat_model(settings, cast("Role", role), seed=seed)
    return settings


def seat(settings: Settings, role: str) -> Seat:
    """Who plays a role."""
    return read_roles(settings.models_dir).seats[cast("Role", role)]


def verdict_of(settings: Settings, slot: str = "shadow", **changes: Any) -> Verdict:
    """A promote verdict about who plays now."""
    first, second = (Version(s.version, s.digest) for s in (seat(settings, "primary"), seat(settings, slot)))
    verdict = Verdict(
        "promote", (GAIN,), first, second, primary_contract().digest, (VERSION,), "campaign", AT - timedelta(days=14),
        "e" * 64, "c" * 64, AT - timedelta(hours=2), AT + timedelta(days=7),
    )  # fmt: skip
    return replace(verdict, **changes)


def write_verdict(settings: Settings, verdict: Verdict, slot: str = "shadow", name: str = "", **more: Any) -> Path:
    """Write it where the comparison writes it, or under another name."""
    folder = settings.state_dir / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or ("compare.json" if slot == "shadow" else f"compare-{slot}.json"))
    path.write_text(json.dumps({"verdict": plain(asdict(verdict)), "digest": verdict.digest, **more}))
    return path


def make_registry(settings: Settings) -> None:
    """An MLflow registry as training leaves it: a version per seat, an alias per role."""
    from service.feature_store import project
    from training.register import connect, set_alias

    client = connect(settings)
    client.create_registered_model(project())
    for _ in range(3):
        client.create_model_version(project(), settings.state_dir.as_uri())
    for role, one in read_roles(settings.models_dir).seats.items():
        set_alias(client, role, one.version)


def aliases(settings: Settings) -> dict[str, str]:
    """Where the registry's aliases point."""
    from training.aliases import read_aliases
    from training.register import connect

    return {str(role): version for role, version in read_aliases(connect(settings)).items() if version}


def make_bento(home: Path, name: str, models: Path) -> Path:
    """A Bento of the local store that holds these roles."""
    folder = home / "bentos" / "understudy" / name
    (folder / "src" / "models").mkdir(parents=True)
    (folder / "src" / "models" / "roles.json").write_text((models / "roles.json").read_text())
    told = {
        "service": "service.app:Gateway", "name": "understudy", "version": name, "bentoml_version": "1.4.39",
        "creation_time": f"2013-10-0{len(name)}T00:00:00+00:00", "labels": {"project": "understudy"}, "spec": 2,
    }  # fmt: skip
    (folder / "bento.yaml").write_text(yaml.safe_dump(told))
    for other in ("models", "tmp"):
        (home / other).mkdir(exist_ok=True)
    return folder


def labels(folder: Path) -> dict[str, str]:
    """A Bento's labels."""
    return dict(yaml.safe_load((folder / "bento.yaml").read_text())["labels"])


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a command on this bundle, with a Bento store of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    home = settings.state_dir.parent
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "UNDERSTUDY_STATE_DIR": str(settings.state_dir),
        "UNDERSTUDY_MODELS_DIR": str(settings.models_dir),
        "UNDERSTUDY_CLOCK": settings.clock,
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }


def command(module: str, *words: str) -> list[str]:
    """A command of the project."""
    return [sys.executable, "-m", module, *words]


def copied(template: Path, folder: Path) -> tuple[Settings, Path]:
    """A copy of a bundle with a Bento, and the folder of the Bento."""
    shutil.copytree(template, folder)
    return _settings(folder), folder / "bentoml/bentos/understudy/b"


def _settings(folder: Path) -> Settings:
    return Settings(state_dir=folder / "state", models_dir=folder / "models", clock=str(folder / "clock"))


def told_by(settings: Settings, bento: Path) -> dict[str, Any]:
    """Everything that says who plays."""
    roles = read_roles(settings.models_dir)
    done = [(m.revision, m.kind) for m in read_history(settings.models_dir) if m.done]
    return {
        "roles": {str(role): one.version for role, one in roles.seats.items()},
        "aliases": aliases(settings),
        "bento": labels(bento).get("roles"),
        "last": done[-1],
    }


# Runs a command again and again, each time in a copy of the template, ending at the n-th thing that is written
# anywhere, before it is; then `make roles`. Imports once, and forks, because importing takes seconds.
KILLED = """
import json, os, shutil, sys
from pathlib import Path
from mlflow.tracking import MlflowClient
import bentoml, training.register, training.aliases
from feature_repo import features
from service.definitions import contracts
from deploy import moves, promote, rollback, watch, bento_labels
template, home, module, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
left = 0

def counted(real):
    def call(*args, **more):
        global left
        left -= 1
        if left < 0:
            os._exit(77)
        return real(*args, **more)
    return call

def forked(folder, main, steps, *args):
    global left
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        os.environ |= {"UNDERSTUDY_STATE_DIR": str(folder / "state"), "UNDERSTUDY_MODELS_DIR": str(folder / "models"),
                       "UNDERSTUDY_CLOCK": str(folder / "clock")}
        from bentoml._internal.bento import BentoStore
        from bentoml._internal.configuration.containers import BentoMLContainer
        BentoMLContainer.bento_store.set(BentoStore(folder / "bentoml" / "bentos"))
        if steps is not None:
            left = steps
            for owner, name in ((os, "fsync"), (Path, "replace"), (MlflowClient, "set_registered_model_alias"),
                                (MlflowClient, "delete_registered_model_alias")):
                setattr(owner, name, counted(getattr(owner, name)))
        code = main(*args)
    finally:
        sys.stdout.flush()
        os._exit(code)

for step in range(40):
    folder = home / str(step)
    shutil.copytree(template, folder)
    code = forked(folder, sys.modules[module].main, step, words)
    again = forked(folder, moves.main, None)
    print("ENDED", json.dumps([code, again]), flush=True)
    if code != 77:
        break
"""


def killed_at_every_step(template: Path, folder: Path, module: str, *words: str, ends: int = 0) -> list[dict[str, Any]]:
    """What is told after a kill at each step and a look at the roles; the last is of the command that was not killed.

    Args:
        ends: exit code of the command when nobody kills it.
    """
    env = environment_of(_settings(folder))
    script = [sys.executable, "-W", "ignore", "-c", KILLED, str(template), str(folder), module, *words]
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280)
    lines = [line.removeprefix("ENDED ") for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    codes = [json.loads(line) for line in lines]
    assert codes == [[77, 0]] * (len(codes) - 1) + [[ends, 0]], done.stdout + done.stderr
    return [told_by(_settings(folder / str(n)), folder / f"{n}/bentoml/bentos/understudy/b") for n in range(len(codes))]
