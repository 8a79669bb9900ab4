"""The OpenAPI document and the running service agree, whatever is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from benchmarks.fuzz import fuzz
from tests.bundle import NOW, REQUEST, make_bundle
from tests.serving import Served, served

pytestmark = pytest.mark.slow

LABEL = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}
UNKNOWN = {**REQUEST, "tailnum": None, "request_id": None}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzz")
    with served(make_bundle(folder), folder) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", REQUEST),
        ("/predict", UNKNOWN),
        ("/predict_batch", [REQUEST, UNKNOWN, {"origin": 7}]),
        ("/labels", [LABEL]),
    ],
)
def test_a_request_and_its_answer_are_as_documented(service: Served, path: str, body: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/docs.json")

    case = schema[path]["POST"].Case(body=body, media_type="application/json")

    answer = case.call()
    case.validate_response(answer)
    assert answer.status_code == 200


def test_nothing_that_can_be_sent_makes_the_service_fail(service: Served) -> None:
    found = fuzz(service.url, NOW, cases=600, seed=11)

    assert (found.server_errors, found.schema_violations, found.unsent) == (0, 0, 0)
    assert found.passed
    assert found.cases >= 600
