from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typeguard
from feast import FeatureView

from deploy.demo import environment
from service.lean import unchecked
from service.models import open_model
from service.settings import ROOT
from tests.bundle import make_bundle
from tests.service.test_models import toy


def test_what_is_imported_without_checks_is_as_it_is_written() -> None:
    def written(number: int) -> int:
        return number

    with unchecked():
        assert typeguard.typechecked(written) is written
        assert typeguard.typechecked(debug_instrumentation=True)(written) is written

    with pytest.raises(typeguard.TypeCheckError):
        typeguard.typechecked(written)("no number")  # type: ignore[arg-type]  # what the check is for


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


@pytest.mark.parametrize("serving", [True, False])
def test_a_runner_scores_without_what_lightgbm_would_like_to_have(tmp_path: Path, *, serving: bool) -> None:
    (tmp_path / "model.txt").write_bytes(toy("lightgbm").content)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from service import lean\n"
        f"lean.serving = {serving}\n"
        "from service.models import open_model\n"
        f"score = open_model('lightgbm', Path({str(tmp_path / 'model.txt')!r}).read_bytes(), 3)\n"
        "print('sklearn' in sys.modules, 'pandas' in sys.modules, *score(np.zeros((2, 3))))\n"
        "import sklearn, pandas\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    expected = open_model("lightgbm", toy("lightgbm").content, 3)(np.zeros((2, 3)))
    assert done.stdout.split() == [str(not serving), str(not serving), *map(str, expected)]
