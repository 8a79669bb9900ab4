"""Trains when retraining is due, and seats the model in a free shadow slot: ``make retrain``. Promotes nothing.

Every step is a line of ``<state>/retraining/decisions.jsonl``. Last line of stdout: one JSON object. Exit code 0:
trained, or nothing was due; 1: the gate refused the model, or the training failed; 2: nothing could be decided; 3: a
campaign holds every slot; 4: another retraining runs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from monitoring.retraining import FILE, folder, settled, summary
from monitoring.retraining_facts import gather, read_decisions
from service.clock import clock_from, parse_instant
from service.errors import PackageError, UnderstudyError
from service.journal import append_line
from service.package import read_package
from service.progress import Say
from service.roles import Role, locked, read_roles, shadow_slots
from service.settings import Settings, settings
from training.gate import GateRefused

Did = Literal["nothing", "trained", "unchanged", "refused", "failed", "no slot"]
Trainer = Callable[[Settings, datetime, str, Say], Mapping[str, Any]]
_CODES: Mapping[Did, int] = {"nothing": 0, "trained": 0, "unchanged": 0, "refused": 1, "failed": 1, "no slot": 3}


class RetrainingRuns(UnderstudyError):
    """Another retraining holds the lock."""


@dataclass(frozen=True)
class Outcome:
    """What was done: ``slot`` and ``version`` of a model that was seated, ``why`` in words."""

    decision: str
    did: Did
    slot: str = ""
    version: str = ""
    why: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Retrain when due and return the exit code."""
    parser = argparse.ArgumentParser(prog="make retrain", description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(arguments)
    try:
        own = settings()
        done = retrain(own, clock_from(own.clock).now(), _train, _say)
    except RetrainingRuns as error:
        sys.stderr.write(f"retrain: {error}\n")
        return 4
    except (UnderstudyError, OSError) as error:
        sys.stderr.write(f"retrain: {error}\n")
        return 2
    if _CODES[done.did]:
        sys.stderr.write(f"retrain: {done.why}\n")
    sys.stdout.write(f"\n{json.dumps({**vars(done), 'record': str(folder(own.state_dir) / FILE)})}\n")
    return _CODES[done.did]


def retrain(own: Settings, now: datetime, trainer: Trainer, say: Say) -> Outcome:
    """Decide, and train when it is due.

    Args:
        now: by the clock; the training sees nothing that became known later.
        trainer: trains for a slot as of a moment and returns what ``training.train`` does.

    Raises:
        RetrainingRuns: when another one is at it; nothing was decided.
        NotReady: when nothing could be decided.
    """
    folder(own.state_dir).mkdir(parents=True, exist_ok=True)
    with _alone(folder(own.state_dir) / ".run.lock"):
        _repair(own, now, say)
        with locked(folder(own.state_dir) / ".lock"):
            decision, _ = settled(own, gather(own, now))
        say(summary(decision).strip())
        if decision.decision != "retrain":
            return Outcome(decision.decision, "nothing", why="no training is due")
        slot = _free(own)
        if slot is None:
            why = f"every shadow slot ({', '.join(shadow_slots(own.shadows))}) has a campaign; promote or unseat one"
            _note(own, now, "no slot", why=why)
            return Outcome("retrain", "no slot", why=why)
        _note(own, now, "started", slot=slot, key=decision.key)
        return _act(own, now, slot, trainer, say)


def _act(own: Settings, now: datetime, slot: Role, trainer: Trainer, say: Say) -> Outcome:
    try:
        result = trainer(own, now, slot, say)
    except UnderstudyError as error:
        # A registry that is away is no judgement of the model: it is tried again without a cool-down.
        did: Did = "refused" if isinstance(error, GateRefused) else "failed"
        _note(own, now, did, slot=slot, why=str(error))
        return Outcome("retrain", did, slot, why=str(error))
    version = str(result["roles"].get(slot, ""))
    if not version:
        why = "the training gave a model that plays already"
        _note(own, now, "unchanged", slot=slot, why=why)
        return Outcome("retrain", "unchanged", slot, why=why)
    why = f"version {version} rehearses in {slot} from now on; `make compare` judges it"
    _note(own, now, "trained", slot=slot, version=version, why=why)
    return Outcome("retrain", "trained", slot, version, why)


def _repair(own: Settings, now: datetime, say: Say) -> None:
    """Close a training that was cut short: as trained when its model is seated, otherwise as to be done again."""
    steps = ("started", "trained", "unchanged", "refused", "failed", "interrupted")
    found, _ = read_decisions(folder(own.state_dir) / FILE)
    last = next((line for line in reversed(found) if line.get("decision") in steps), None)
    if last is None or last["decision"] != "started":
        return
    began, slot = parse_instant(last["at"]), str(last.get("slot", ""))
    seat = next((seat for role, seat in read_roles(own.models_dir).seats.items() if role == slot), None)
    if seat is not None and _as_of(own.models_dir / seat.package, seat.digest) == began:
        _note(own, began, "trained", slot=slot, version=seat.version, why="found seated after an interruption")
        say(f"the training of {began:%Y-%m-%d %H:%M} was cut short after its model was seated: version {seat.version}")
    else:
        _note(own, now, "interrupted", slot=slot, why=f"the training begun at {began.isoformat()} did not end")
        say(f"the training of {began:%Y-%m-%d %H:%M} was cut short; deciding anew")


def _as_of(package: Path, digest: str) -> datetime | None:
    try:
        return parse_instant(json.loads(read_package(package, digest)["record.json"])["as_of"])
    except (PackageError, KeyError, ValueError, TypeError):
        return None


def _free(own: Settings) -> Role | None:
    taken = read_roles(own.models_dir).seats
    return next((slot for slot in shadow_slots(own.shadows) if slot not in taken), None)


def _note(own: Settings, at: datetime, decision: str, **more: str) -> None:
    line = {"at": at.isoformat(), "decision": decision, **more}
    append_line(folder(own.state_dir) / FILE, json.dumps(line, sort_keys=True))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another retraining holds {path}; wait for its end"
            raise RetrainingRuns(msg) from None
        yield


def _train(own: Settings, at: datetime, slot: str, say: Say) -> Mapping[str, Any]:
    # Imports Feast and MLflow, which takes seconds: only when there is something to train.
    from training.train import SEED, train

    return train(own, at, slot, SEED, say)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
