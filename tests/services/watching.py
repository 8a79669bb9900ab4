"""Starts a real Prometheus or Alertmanager with the project's own configuration, pointed at a test's servers."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from deploy.demo import answers, free_port
from service.settings import ROOT

CONFIGURATION = ROOT / "deploy/prometheus/prometheus.yml"
ALERTMANAGER = ROOT / "deploy/alertmanager/alertmanager.yml"
PATIENCE_S = 60


def program(name: str) -> str:
    """Path of a server's program; its absence is a failure, not a reason to skip."""
    found = shutil.which(name)
    assert found, f"{name} is not installed; install the distribution's package `prometheus` or `{name}`"
    return found


def eventually(done: Callable[[], Any]) -> Any:
    """Return what ``done`` gives once that is true; fail after a minute."""
    end = time.monotonic() + PATIENCE_S
    while not (result := done()):
        assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain"
        time.sleep(0.2)
    return result


@contextlib.contextmanager
def running(command: Sequence[str], ready: str, log: Path) -> Iterator[None]:
    """Run a server until the block ends, which begins when ``ready`` answers."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            eventually(lambda: answers(ready))
            yield
        finally:
            process.terminate()
            process.wait(20)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """GET a path of its API and return the answer's data."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask for an instant vector."""
        return list(self.get("query", query=expression)["result"])

    def total(self, expression: str) -> float:
        """Sum of an expression's values; 0 when it has none."""
        return sum(float(entry["value"][1]) for entry in self.query(expression))

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == "firing"}


@contextlib.contextmanager
def prometheus(folder: Path, service: str, jobs: str, alertmanager: str = "127.0.0.1:1") -> Iterator[Prometheus]:
    """A Prometheus that scrapes two addresses every second; the project's rules, but none waits (``for: 0s``)."""
    (folder / "rules").mkdir()
    for path in (CONFIGURATION.parent / "rules").glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = "0s"
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for scrape, address in zip(configuration["scrape_configs"], (service, jobs), strict=True):
        scrape["static_configs"][0]["targets"] = [address]
        scrape["scrape_interval"] = "1s"
    configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]  # fmt: skip
    with running(command, f"{url}/-/ready", folder / "log"):
        yield Prometheus(url)


@contextlib.contextmanager
def alertmanager(folder: Path, receiver: str) -> Iterator[str]:
    """An Alertmanager with the project's routes and messages; Slack and PagerDuty are a test's receiver."""
    shutil.copytree(ALERTMANAGER.parent / "templates", folder / "templates")
    configuration = yaml.safe_load(ALERTMANAGER.read_text())
    (folder / "slack_url").write_text(f"{receiver}/slack\n")
    (folder / "pagerduty_key").write_text("the-routing-key\n")
    receivers = {entry["name"]: entry for entry in configuration["receivers"]}
    receivers["slack"]["slack_configs"][0]["api_url_file"] = str(folder / "slack_url")
    receivers["pagerduty"]["pagerduty_configs"][0] |= {
        "routing_key_file": str(folder / "pagerduty_key"), "url": f"{receiver}/pagerduty"
    }  # fmt: skip
    for route in (configuration["route"], *configuration["route"]["routes"]):
        route |= {"group_wait": "1s", "group_interval": "2s"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program("prometheus-alertmanager"), f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}", f"--web.listen-address={url.removeprefix('http://')}",
        "--cluster.listen-address=",
    ]  # fmt: skip
    with running(command, f"{url}/-/ready", folder / "log"):
        yield url


@dataclass
class Mailbox:
    """What was delivered, by path, and what is handed out to who asks."""

    url: str = ""
    served: bytes = b""
    delivered: list[tuple[str, Any]] = field(default_factory=list)

    def at(self, path: str) -> list[Any]:
        """What was delivered to a path."""
        return [body for to, body in list(self.delivered) if to == path]


@contextlib.contextmanager
def mailbox(served: bytes = b"") -> Iterator[Mailbox]:
    """A small server on loopback that takes any JSON and answers every GET with the same text."""
    box = Mailbox(served=served)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            box.delivered.append((self.path, json.loads(body)))
            self._answer(202, b'{"status": "success"}')

        def do_GET(self) -> None:
            self._answer(200, box.served)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    box.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield box
    finally:
        server.shutdown()
        server.server_close()
