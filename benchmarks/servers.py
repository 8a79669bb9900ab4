"""The servers of the benchmarks, each in a folder of its own below a prepared one, and the load on them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.demo import environment, free_port, serving, stop, wait_until_ready
from service.roles import read_roles
from service.settings import PREFIX, ROOT


def stop_what_was_started() -> None:
    """Let a polite kill of this program unwind it, so that its servers end with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


def clean(env: dict[str, str]) -> dict[str, str]:
    """An environment with the folders of a benchmark, and no other setting of whoever started it."""
    own = {"UNDERSTUDY_STATE_DIR", "UNDERSTUDY_MODELS_DIR", "UNDERSTUDY_CLOCK"}
    return {name: value for name, value in env.items() if not name.startswith(PREFIX) or name in own}


@contextlib.contextmanager
def ours(home: Path, name: str, *, models: Path | None = None, **variables: str) -> Iterator[str]:
    """Serve the bundle in a folder of its own below ``home``, its clock standing; yields its address.

    Args:
        models: folder of its models; default: the trained ones.
        variables: settings beside the defaults.
    """
    folder = home / "run" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)
    for file in ("online.db", "online.db-wal", "registry.db"):
        if (home / "state" / file).exists():
            shutil.copy(home / "state" / file, folder / "state" / file)
    (folder / "models").symlink_to(models or home / "models")
    env = {**clean(environment(folder)), "UNDERSTUDY_CLOCK": (home / "moment").read_text(), **variables}
    with serving(env, folder / "serve.log") as url:
        yield url


@contextlib.contextmanager
def stock(home: Path) -> Iterator[str]:
    """Serve the stock BentoML service with the primary's model file; yields its address."""
    folder = home / "run" / "stock"
    folder.mkdir(parents=True, exist_ok=True)
    model = home / "models" / read_roles(home / "models").seats["primary"].package / "model.txt"
    env = {**clean(environment(folder)), "STOCK_MODEL": str(model)}
    with serving(env, folder / "serve.log", "benchmarks.stock_service:Stock") as url:
        yield url


@contextlib.contextmanager
def handwritten(home: Path, **variables: str) -> Iterator[str]:
    """Serve the hand-written service with one uvicorn worker; yields its address."""
    folder = home / "handwritten"
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.handwritten_service:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--no-access-log"]
    env = {**clean(environment(folder)), "HANDWRITTEN_HOME": str(folder), **variables}
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log)
            yield url
        finally:
            stop(process)


def loader(url: str, bodies: Path, **options: float) -> list[str]:
    """The command that runs the load generator on ``/predict``; an option of 0 is left out."""
    command = [sys.executable, "-m", "benchmarks.load", f"{url}/predict", "--bodies", str(bodies)]
    return command + [word for name, value in options.items() if value for word in (f"--{name}", f"{value:.12g}")]


def loaded(url: str, bodies: Path, *, stages: bool = False, **options: float) -> dict[str, Any]:
    """Run the load generator in a process of its own and return its result."""
    command = [*loader(url, bodies, **options), *(["--stages"] if stages else [])]
    done = subprocess.run(command, cwd=ROOT, env=own_path(), stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def own_path() -> dict[str, str]:
    """The environment in which this project's modules are found."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
