"""A PostgreSQL of the tests' own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from deploy.demo import free_port

SECRET = "hunter2-hunter2"


def program(name: str) -> str:
    """Path of one of PostgreSQL's programs, which Debian keeps by version and off the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(beside[-1]) if beside else None)
    assert found, f"{name} is not installed; install the distribution's package `postgresql`"
    return found


def unprivileged() -> list[str]:
    """What to put before a command of PostgreSQL's, which refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []


class Cluster:
    """A PostgreSQL of the tests' own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        made = subprocess.run(
            [*unprivileged(), program("initdb"), "-D", str(folder / "data"), "-U", "ship", "-A", "trust", "--no-sync"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        self._control("start", "-o", f"-p {self.port} -h 127.0.0.1 -k {folder} -c fsync=off")

    def _control(self, *what: str) -> None:
        command = [*unprivileged(), program("pg_ctl"), "-D", str(self.folder / "data"), "-w", "-s"]
        done = subprocess.run(
            [*command, "-l", str(self.folder / "log"), *what], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Stop at once, as a crash would."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start again."""
        self._control("start", "-o", f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off")

    def dsn(self, database: str = "postgres") -> str:
        """Address of a database, with a password nobody asks for."""
        return f"postgresql://ship:{SECRET}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database and return its address."""
        with psycopg.connect(self.dsn(), autocommit=True) as db:
            db.execute(f'CREATE DATABASE "{database}"')
        return self.dsn(database)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A new cluster, gone at the end."""
    # Not below pytest's folder, which only its owner may enter; the socket's path must be short, too.
    made = subprocess.check_output([*unprivileged(), "mktemp", "-d", "/tmp/understudy-pg-XXXXXX"], text=True)
    folder = Path(made.strip())
    try:
        found = Cluster(folder)
        try:
            yield found
        finally:
            found.stop()
    finally:
        shutil.rmtree(folder)
