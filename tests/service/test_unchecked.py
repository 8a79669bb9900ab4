from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typeguard
from feast import FeatureView

from deploy.demo import environment
from service.settings import ROOT
from service.unchecked import unchecked
from tests.bundle import make_bundle


def test_what_is_imported_without_checks_is_as_it_is_written() -> None:
    def written(number: int) -> int:
        return number

    with unchecked():
        assert typeguard.typechecked(written) is written
        assert typeguard.typechecked(debug_instrumentation=True)(written) is written

    with pytest.raises(typeguard.TypeCheckError):
        typeguard.typechecked(written)("no number")  # type: ignore[arg-type]


def test_a_failed_import_leaves_the_checks_to_others() -> None:
    plain = typeguard.typechecked

    with pytest.raises(ImportError), unchecked():
        raise ImportError

    assert typeguard.typechecked is plain


def test_a_runner_does_not_import_feast_and_a_gateway_without_its_checks(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    code = (
        "import sys\n"
        "import service.app\n"
        "print('feast' in sys.modules)\n"
        "service.app.Gateway.inner()\n"
        "from feast import FeatureView\n"
        "print(any(name.startswith('check_') for name in FeatureView.__init__.__code__.co_names))\n"
    )

    env = {**environment(tmp_path), "UNDERSTUDY_CLOCK": "wall"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
    assert any(name.startswith("check_") for name in FeatureView.__init__.__code__.co_names)
