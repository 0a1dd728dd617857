"""What `make install` installs: pinned requirements, and the package itself in place, to be imported from any folder."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import REPOSITORY

LOCATE = 'import importlib.util as util; print(util.find_spec("rtdmd_lightning").origin, util.find_spec("tests"))'


def test_the_package_is_importable_outside_the_repository_and_its_tests_are_not(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-c", LOCATE], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert finished.returncode == 0, f"not installed (`make install` does it): {finished.stderr}"
    origin, tests = finished.stdout.split()
    assert Path(origin).name == "__init__.py" and Path(origin).parent.name == "rtdmd_lightning"
    assert tests == "None"


def test_every_requirement_is_pinned():
    """Both files: what a stranger installs is what these tests ran with."""
    for name in ("requirements.txt", "requirements-no-deps.txt"):
        lines = (REPOSITORY / name).read_text().splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#")), name
