"""What tests with servers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.postgres import Cluster, running_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as found:
        yield found


@pytest.fixture
def database(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """Address of an empty database."""
    return cluster.create(f"d{abs(hash(request.node.name))}")
