"""The running service: answers, traces and logs of a request with a field that is not to be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo import DemoFailed
from tests.bundle import REQUEST, make_bundle
from tests.serving import served

pytestmark = pytest.mark.slow
SECRET = "N-SECRET-7"


def test_no_file_and_no_output_of_the_service_holds_the_value(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    with served(bundle, tmp_path, UNDERSTUDY_REDACT="tailnum,temp") as service:
        status, answer = service.post("/predict", {**REQUEST, "tailnum": SECRET})
        refused, _ = service.post("/predict", {**REQUEST, "tailnum": SECRET, "distance": -1})
        (record,) = service.wait_for("predictions", lambda _: True)
        assert SECRET not in service.get("/metrics")

    assert (status, answer["role"], refused) == (200, "primary", 422)
    assert any(SECRET in violation["message"] for violation in answer["violations"])
    assert record["redacted"] == ["tailnum", "temp"]
    assert "tailnum" not in record["request"]
    # The service's own output among them.
    assert (tmp_path / "serve.log").exists()
    assert [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()] == []


def test_a_name_that_is_no_field_stops_the_command(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)

    with (
        pytest.raises(DemoFailed, match="UNDERSTUDY_REDACT names nonsense"),
        served(bundle, tmp_path, UNDERSTUDY_REDACT="tailnum,nonsense"),
    ):
        pass
