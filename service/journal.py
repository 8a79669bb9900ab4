"""Small files that say what is in force, and the histories beside them: written so that a crash leaves whole lines."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path


def append_line(path: Path, line: str) -> None:
    """Add one line to a history and wait until it is on disk; what a crash tore stays, on a line of its own."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a file that appears in one rename, on disk before it does."""
    temporary = path.with_name(f"{path.name}.next")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def mover() -> str:
    """Return who is at work: user and host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
