"""Runs the command of a job in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from monitoring import monitor_job
from tests.monitoring.monitored import START, Monitored

Ran = tuple[int, dict[str, Any]]


class Job:
    """A job's ``main``; ``out`` and ``err`` are what its last run printed."""

    def __init__(self, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
        self.out = self.err = ""
        self._main = main
        self._capsys = capsys

    def run(self, *arguments: str) -> Ran:
        """Return the exit code, and the object in the last line printed; empty when nothing was."""
        code = self._main(arguments)
        self.out, self.err = self._capsys.readouterr()
        return code, json.loads(self.out.splitlines()[-1]) if self.out else {}


class MonitorJob(Job):
    """The drift job, by a clock that stands ``days`` after the traffic's start."""

    def __init__(
        self, model: Monitored, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], days: float
    ) -> None:
        super().__init__(monitor_job.main, capsys)
        self._model = model
        self._patch = patch
        self._days = days

    def __call__(self, *arguments: str, days: float | None = None, evidently: bool = False) -> Ran:
        """Run it, with other ``days`` when they are given."""
        now = START + timedelta(days=self._days if days is None else days)
        own = self._model.settings.model_copy(update={"clock": now.isoformat()})
        self._patch.setattr(monitor_job, "settings", lambda: own)
        return self.run(*arguments, *(() if evidently else ("--no-evidently",)))
