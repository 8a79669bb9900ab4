"""Where the faults happen: a bundle of its own in a temporary folder, Redis behind a proxy, and the running service.

Models are fitted to noise in a second: what matters is that different requests get different answers, so that an
answer to somebody else's request, or one from a model that was not seated, is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]  # carries no types
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.machine import processes
from benchmarks.proxy import ProxyProcess
from benchmarks.servers import clean
from deploy.demo import environment, free_port, serving
from feature_repo import features as definitions
from service.clock import write_clock
from service.contract import Contract, FieldSpec
from service.definitions import contracts
from service.package import Signature, save_package
from service.roles import Role, Seat, move_roles, read_roles
from service.settings import PREFIX, Settings
from training.estimators import FITTERS
from training.store import apply, open_store

NOW = datetime(2013, 10, 1, 12, 0, tzinfo=UTC)
DISK_MB = 768
# So small that segments are closed and begun while logs cannot be written.
SEGMENT_BYTES = 300_000
ORIGINS, CARRIERS = ("EWR", "JFK", "LGA"), ("AA", "B6", "UA")
ROUTES, TAILS = ("EWR-IAH", "JFK-LAX", "LGA-ORD"), ("N14228", "N24211", "N619AA", "N804JB")
# What a broken model may give: a constant per row, or one score whatever the number of rows.
GARBAGE: Mapping[str, float | None] = {"nan": float("nan"), "out_of_range": 7.5, "wrong_count": None}
GATEWAY = "understudy"


@dataclass
class RedisServer:
    """A Redis that survives its own death: every write is in its append-only file."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed; install the distribution's package `redis-server`")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(RedisError):
                if Redis(port=self.port).ping():
                    return
            time.sleep(0.02)
        raise SystemExit("redis-server does not answer")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; returns after its death when it is a deadly one."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Killed:
    """A gateway worker that was killed: its process id, and the callers' ports of its connections."""

    pid: int
    at: float
    ports: frozenset[int]


@dataclass
class Arena:
    """A running service and what can be done to it.

    Attributes:
        home: folder of everything of the service; a disk of its own when ``mounted``.
        seats: packages by name; ``good`` plays, the others can.
        rescued: folder of log segments that were deleted, as they were then.
        killed: gateway workers that were killed so far.
    """

    home: Path
    settings: Settings
    redis: RedisServer
    proxy: ProxyProcess
    url: str
    seats: dict[str, dict[Role, Seat]]
    mounted: bool
    rescued: Path
    killed: list[Killed] = field(default_factory=list)

    def pids(self, name: str) -> list[int]:
        """Ids of the processes of a BentoML service."""
        return sorted(p.pid for p in processes(self.home).get(name, []))

    def send(self, name: str, number: signal.Signals) -> list[int]:
        """Send the processes of a BentoML service a signal; returns their ids."""
        pids = self.pids(name)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def kill_worker(self) -> None:
        """Kill one gateway worker, noting whose connections it held."""
        pid = self.pids(GATEWAY)[0]
        # A stopped one takes no new connections.
        os.kill(pid, signal.SIGSTOP)
        ports = frozenset(c.raddr.port for c in _callers(pid))
        self.killed.append(Killed(pid, time.monotonic(), ports))
        os.kill(pid, signal.SIGKILL)

    def workers(self) -> int:
        """Number of gateway workers that hold a connection."""
        found = 0
        for pid in self.pids(GATEWAY):
            with contextlib.suppress(psutil.Error):
                found += any(c.status == psutil.CONN_ESTABLISHED for c in _callers(pid))
        return found

    def series(self, name: str, **labels: str) -> list[float]:
        """Values of a metric's samples with these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [s for family in families for s in family.samples if s.name == name]
        return [s.value for s in samples if labels.items() <= s.labels.items()]

    def seat(self, role: Role, name: str) -> None:
        """Seat a package."""
        models = self.settings.models_dir
        move_roles(models, read_roles(models).revision, {role: self.seats[name][role]}, f"chaos: {name}")

    def set_clock(self, hours: float) -> None:
        """Set the business clock so many hours from where it stands otherwise."""
        write_clock(self.settings.state_dir / "clock", NOW + timedelta(hours=hours))


def _callers(pid: int) -> list[Any]:
    """Connections that a process has from callers: those on the port it listens on."""
    found = psutil.Process(pid).net_connections("tcp")
    doors = {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
    return [c for c in found if c.raddr and c.laddr.port in doors]


@contextlib.contextmanager
def arena(deadline_ms: float, *, workers: int) -> Iterator[Arena]:
    """Make everything, run it until the block ends, and leave nothing behind."""
    with contextlib.ExitStack() as stack:
        outer = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))).resolve()
        home = outer / "home"
        home.mkdir()
        mounted = stack.enter_context(_disk(home))
        redis = RedisServer(outer, free_port())
        redis.start()
        stack.callback(redis.stop)
        settings = Settings(
            state_dir=home / "state", models_dir=home / "models", feature_store="redis",
            redis=f"127.0.0.1:{redis.port}", clock="wall",
        )  # fmt: skip
        seats = make_bundle(settings, outer / "requests.jsonl")
        proxy = stack.enter_context(ProxyProcess(redis.port))
        (outer / "run").mkdir(mode=0o700)
        reserve = min(15.0, deadline_ms * 0.3)
        chosen = {
            "feature_store": "redis", "redis": f"127.0.0.1:{proxy.port}", "deadline_ms": f"{deadline_ms:g}",
            "fallback_reserve_ms": f"{reserve:g}", "workers": str(workers), "run_dir": str(outer / "run"),
            "segment_bytes": str(SEGMENT_BYTES), "noise_sample": "0",
        }  # fmt: skip
        variables = {PREFIX + name.upper(): value for name, value in chosen.items()}
        env = {**clean(environment(home)), **variables}
        url = stack.enter_context(serving(env, outer / "serve.log"))
        yield Arena(home, settings, redis, proxy, url, seats, mounted, outer / "rescued")


@contextlib.contextmanager
def _disk(home: Path) -> Iterator[bool]:
    """Give ``home`` a disk of its own, where that is permitted; tells whether it is."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "tmpfs", str(home)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    try:
        yield done
    finally:
        if done:
            for options in ([], ["-l"]):
                if subprocess.run(["umount", *options, str(home)], capture_output=True, check=False).returncode == 0:
                    break


def make_bundle(settings: Settings, requests: Path) -> dict[str, dict[Role, Seat]]:
    """Fit, package and seat models, fill the online store, write requests; returns packages by name."""
    known = contracts(definitions)
    rng = np.random.default_rng(5)
    good: dict[Role, Seat] = {}
    roles: tuple[tuple[Role, str], ...] = (("primary", "primary"), ("fallback", "request_only"), ("shadow", "primary"))
    for number, (role, service) in enumerate(roles, 1):
        good[role] = _packaged(settings, known[service], str(number), *_fitted(known[service], number, rng))
    seats: dict[str, dict[Role, Seat]] = {"good": good}
    for name, value in GARBAGE.items():
        model = broken(len(known["primary"].features), value)
        seat = _packaged(settings, known["primary"], name, "onnx", model)
        seats[name] = {"primary": seat, "shadow": seat}
    seats["altered"] = {"primary": _altered(settings, good["shadow"])}
    move_roles(settings.models_dir, 0, good, "chaos")
    _fill(settings, known["primary"], rng)
    write_clock(settings.state_dir / "clock", NOW)
    requests.write_text("".join(json.dumps(row) + "\n" for row in _requests(rng)))
    return seats


def _fitted(contract: Contract, seed: int, rng: np.random.Generator) -> tuple[str, bytes]:
    x = np.column_stack([_drawn(spec, rng) for spec in contract.fields])
    y = (rng.random(len(x)) < 0.3).astype(float)
    parameters = {"objective": "binary", "num_leaves": 31, "learning_rate": 0.3, "rounds": 40}
    trained = FITTERS["lightgbm"](parameters, x, y, [], seed)
    return trained.format, trained.content


def _drawn(spec: FieldSpec, rng: np.random.Generator, rows: int = 2000) -> Any:
    low, high = (0.0, 3.0) if spec.is_category else (spec.minimum or 0.0, spec.maximum or 1.0)
    return rng.uniform(low, high, rows)


def broken(width: int, value: float | None) -> bytes:
    """Return an ONNX model that gives ``value`` for every row, or with None a single score for any number of rows."""
    from onnx import TensorProto, helper

    rows = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("ConstantOfShape", ["shape"], ["y"], value=helper.make_tensor("v", TensorProto.FLOAT, [1],
                         [0.5 if value is None else value])),
    ]  # fmt: skip
    if value is None:
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        rows[0] = helper.make_node("Constant", [], ["shape"], value=one)
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])
    graph = helper.make_graph(rows, "broken", [takes], [gives])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(model.SerializeToString())


def _packaged(settings: Settings, contract: Contract, version: str, kind: str, content: bytes) -> Seat:
    categories = {"origin": ORIGINS, "carrier": CARRIERS}
    kept = {name: values for name, values in categories.items() if name in contract.features}
    signature = Signature(kind, contract.name, contract.digest, contract.features, kept, contract.output, 0.3)
    record = {"version": version}
    # All a service looks at of a package's sample.
    digest, path = save_package(settings.models_dir, content, signature, {}, record, contract.record(), b"PAR1PAR1")
    return Seat(version, digest, str(path.relative_to(settings.models_dir)))


def _altered(settings: Settings, seat: Seat) -> Seat:
    source = settings.models_dir / seat.package
    target = source.with_name("altered")
    shutil.copytree(source, target)
    content = (target / "model.txt").read_bytes()
    (target / "model.txt").write_bytes(content.replace(b"Tree=1", b"Tree=9", 1))
    return Seat("altered", seat.digest, str(target.relative_to(settings.models_dir)))


def _fill(settings: Settings, contract: Contract, rng: np.random.Generator) -> None:
    keys = {"origin": ORIGINS, "carrier": CARRIERS, "route": ROUTES, "tailnum": TAILS}
    store = open_store(settings)
    apply(store, settings)
    for view in contract.views:
        (key,) = view.keys
        frame = pd.DataFrame({key: keys[key]})
        for spec in (s for s in store.get_feature_view(view.name).schema if s.name != key):
            high, whole = float(spec.tags.get("max", 1)), "Int" in str(spec.dtype)
            low = max(0.0, float(spec.tags.get("min", 0)))
            if "Timestamp" in str(spec.dtype):
                frame[spec.name] = [NOW - timedelta(hours=5 + i) for i in range(len(frame))]
            else:
                drawn = rng.uniform(low, high, len(frame))
                frame[spec.name] = drawn.astype(int) if whole else drawn
        frame["event_timestamp"] = NOW - timedelta(minutes=10)
        store.write_to_online_store(view.name, frame)


def _requests(rng: np.random.Generator, count: int = 997) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        yield {
            "origin": str(rng.choice(ORIGINS)),
            "carrier": str(rng.choice(CARRIERS)),
            "route": str(rng.choice(ROUTES)),
            "tailnum": str(rng.choice(TAILS)),
            "scheduled_departure": (NOW + timedelta(minutes=int(rng.integers(90, 2000)))).isoformat(),
            "distance": float(rng.integers(100, 5000)),
            "hour_flights": int(rng.integers(1, 60)),
        }


if sys.platform != "linux":
    raise SystemExit("the chaos benchmark looks into /proc; run it on Linux")
