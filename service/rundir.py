"""The private folder in which gateway and runners meet."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path

from service.errors import NotReady
from service.settings import PREFIX, Settings

_VARIABLE = f"{PREFIX}RUN_DIR"


def share_run_dir(settings: Settings) -> Settings:
    """Return settings that name a private folder, the same for this process and every one it starts.

    A folder of the setting's choice is made when missing; otherwise a new one, removed when this process ends.

    Raises:
        NotReady: when others may enter the chosen folder.
    """
    folder = settings.run_dir
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="understudy-"))
        os.environ[_VARIABLE] = str(folder)
        atexit.register(_remove, folder, os.getpid())
        return settings.model_copy(update={"run_dir": folder})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        msg = f"run_dir={folder} can be entered by others (mode {status.st_mode & 0o777:o}); run chmod 700 on your own"
        raise NotReady(msg)
    return settings


def socket_of(settings: Settings, role: str) -> Path:
    """Return the path of a role's socket."""
    assert settings.run_dir is not None, "share_run_dir comes first"
    return settings.run_dir / f"{role}.sock"


def _remove(folder: Path, maker: int) -> None:
    # Children that were forked inherit this call; only the maker makes it.
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)
