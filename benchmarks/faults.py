"""The faults: what is done to a running service, and how one sees that it was felt."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.arena import GATEWAY, Arena
from benchmarks.caller import Call
from benchmarks.proxy import Mode
from service.roles import Role

# How long a fault lasts that does not end by itself; models are exchanged within a second or so.
SHORT_S, LONG_S = 2.0, 4.0
LOGS = ("predictions", "shadow")
_PIECE = 64 << 20


@dataclass(frozen=True)
class Seen:
    """What was seen from a fault's begin until the service was itself again.

    Attributes:
        calls: requests of that time.
        outcomes: what became of their rehearsals, by request id.
        log_drops: records that could not be written.
        restarted: BentoML services of which a process was exchanged.
    """

    calls: Sequence[Call]
    outcomes: dict[str, str]
    log_drops: float
    restarted: frozenset[str]

    def reasons(self) -> frozenset[str]:
        """Why others than the primary answered."""
        return frozenset(str(c.answer.get("fallback_reason")) for c in self.calls if c.answer.get("fallback_reason"))

    def gave(self, *begins: str) -> bool:
        """Whether somebody else answered for a reason that begins so."""
        return any(reason.startswith(begins) for reason in self.reasons())

    def version(self, version: str) -> bool:
        """Whether a model answered, be it once."""
        return any(c.answer.get("model_version") == version for c in self.calls)

    @property
    def unscored(self) -> int:
        """Requests whose rehearsal gave no score."""
        return sum(self.outcomes.get(c.request_id) != "scored" for c in self.calls)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and right again.

    Attributes:
        act: does it, and undoes it where the service is not to undo it itself.
        felt: whether it had the effect that it is about: a fault that nobody notices proves nothing.
        logs: whether logs cannot be written meanwhile.
    """

    name: str
    act: Callable[[Arena], None]
    felt: Callable[[Seen], bool]
    logs: bool = False


def _signal(role: str, number: signal.Signals, arena: Arena) -> None:
    if not arena.send(role, number):
        msg = f"no process of {role} to send {number.name}"
        raise RuntimeError(msg)


def _pause(role: str, arena: Arena) -> None:
    _signal(role, signal.SIGSTOP, arena)
    time.sleep(SHORT_S)
    arena.send(role, signal.SIGCONT)


def _garbage(role: Role, name: str, arena: Arena) -> None:
    arena.seat(role, name)
    time.sleep(LONG_S)
    arena.seat(role, "good")


def _proxy(mode: Mode, arena: Arena) -> None:
    arena.proxy.switch(mode)
    time.sleep(SHORT_S)
    arena.proxy.switch("pass")


def _kill_redis(arena: Arena) -> None:
    arena.redis.send(signal.SIGKILL)
    time.sleep(SHORT_S)
    arena.redis.start()


def _stop_redis(arena: Arena) -> None:
    arena.redis.send(signal.SIGSTOP)
    time.sleep(SHORT_S)
    arena.redis.send(signal.SIGCONT)


def _kill_both(arena: Arena) -> None:
    for role in ("primary", "fallback"):
        _signal(role, signal.SIGKILL, arena)


def _kill_runners(arena: Arena) -> None:
    for role in ("primary", "fallback", "shadow"):
        _signal(role, signal.SIGKILL, arena)


def _fill_disk(arena: Arena) -> None:
    with _full(arena.home) if arena.mounted else _no_bytes(arena.pids(GATEWAY)):
        time.sleep(LONG_S)


@contextlib.contextmanager
def _full(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        piece = _PIECE
        while (free := shutil.disk_usage(disk).free) > 0:
            # Logs are written meanwhile: a piece that no longer fits is given back whole, so it is tried in halves.
            try:
                os.posix_fallocate(file.fileno(), file.tell(), min(piece, free))
            except OSError:
                piece = max(piece // 2, resource.getpagesize())
            file.seek(0, os.SEEK_END)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def _no_bytes(pids: Sequence[int]) -> Iterator[None]:
    """Without a disk of its own to fill: let no file of these processes grow."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def _unwritable_logs(arena: Arena) -> None:
    # Permissions do not stop root; a file in the folder's place stops everybody.
    folders = [arena.settings.log_dir / name for name in LOGS]
    for folder in folders:
        folder.rename(folder.with_suffix(".away"))
        # When the service was quicker and has made its folder anew, this one stays usable.
        with contextlib.suppress(FileExistsError):
            folder.touch(exist_ok=False)
    time.sleep(LONG_S)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.unlink()
            folder.with_suffix(".away").rename(folder)


def _delete_logs(arena: Arena) -> None:
    # What was there is lost by whoever deletes it, and put aside for the audit; what comes afterwards may not be lost.
    for name in LOGS:
        folder = arena.settings.log_dir / name
        with contextlib.ExitStack() as stack:
            segments = [(p.name, stack.enter_context(p.open("rb"))) for p in folder.glob("*.jsonl")]
            # In one step, so that no segment is begun meanwhile.
            doomed = folder.rename(folder.with_suffix(".doomed"))
            shutil.rmtree(doomed)
            (arena.rescued / name).mkdir(parents=True, exist_ok=True)
            for segment, file in segments:
                (arena.rescued / name / segment).write_bytes(file.read())
    time.sleep(LONG_S)


def _clock(hours: float, arena: Arena) -> None:
    arena.set_clock(hours)
    time.sleep(SHORT_S)
    arena.set_clock(0)


def _roles(content: bytes | None, arena: Arena) -> None:
    path = arena.settings.models_dir / "roles.json"
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    time.sleep(SHORT_S)
    path.write_bytes(before)


def _seat_altered(arena: Arena) -> None:
    arena.seat("primary", "altered")
    time.sleep(LONG_S)
    arena.seat("primary", "good")


def _primary(seen: Seen) -> bool:
    return seen.gave("primary_", "circuit_open")


def _both(seen: Seen) -> bool:
    return seen.gave("both_failed")


def _shadow(seen: Seen) -> bool:
    return seen.unscored > 0


def _store(seen: Seen) -> bool:
    return seen.gave("store_unavailable")


def _features(seen: Seen) -> bool:
    return seen.gave("features_invalid")


def _logging(seen: Seen) -> bool:
    return seen.log_drops > 0


def _harmless(seen: Seen) -> bool:
    """Of a fault that nobody may notice."""
    return not seen.reasons()


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS: tuple[Fault, ...] = (
    Fault("primary_killed", partial(_signal, "primary", KILL), _primary),
    Fault("primary_stopped", partial(_signal, "primary", STOP), _primary),
    Fault("primary_paused", partial(_pause, "primary"), _primary),
    Fault("primary_nan", partial(_garbage, "primary", "nan"), _primary),
    Fault("primary_out_of_range", partial(_garbage, "primary", "out_of_range"), _primary),
    Fault("primary_wrong_count", partial(_garbage, "primary", "wrong_count"), lambda seen: seen.version("wrong_count")),
    Fault("shadow_killed", partial(_signal, "shadow", KILL), _shadow),
    Fault("shadow_stopped", partial(_signal, "shadow", STOP), _shadow),
    Fault("shadow_paused", partial(_pause, "shadow"), _shadow),
    Fault("shadow_nan", partial(_garbage, "shadow", "nan"), _shadow),
    Fault("shadow_out_of_range", partial(_garbage, "shadow", "out_of_range"), _shadow),
    Fault("shadow_wrong_count", partial(_garbage, "shadow", "wrong_count"), _shadow),
    Fault("redis_killed", _kill_redis, _store),
    Fault("redis_stopped", _stop_redis, _store),
    Fault("redis_garbage", partial(_proxy, "garbage"), _store),
    Fault("redis_refused", partial(_proxy, "refuse"), _store),
    Fault("redis_cut", partial(_proxy, "cut"), _store),
    Fault("redis_stalled", partial(_proxy, "stall"), _store),
    Fault("fallback_killed", partial(_signal, "fallback", KILL), lambda seen: "fallback" in seen.restarted),
    Fault("primary_and_fallback_killed", _kill_both, _both),
    Fault("all_runners_killed", _kill_runners, _both),
    Fault("disk_full", _fill_disk, _logging, logs=True),
    Fault("log_folder_unwritable", _unwritable_logs, _logging, logs=True),
    Fault("log_folder_deleted", _delete_logs, _harmless),
    Fault("clock_forward", partial(_clock, 1.0), _features),
    Fault("clock_backward", partial(_clock, -1.0), _features),
    Fault("worker_killed", Arena.kill_worker, lambda seen: GATEWAY in seen.restarted),
    Fault("roles_deleted", partial(_roles, None), _harmless),
    Fault("roles_corrupted", partial(_roles, b'{"revision": 7, "ro'), _harmless),
    Fault("package_altered", _seat_altered, _harmless),
)
