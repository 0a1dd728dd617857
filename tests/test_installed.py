"""What `make install` installs: pinned requirements, and the package itself in place, to be imported from any folder."""

import itertools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_the_pinned_versions_are_within_the_packages_ranges():
    """`pip install .` takes any version within a range, `make install` the pinned one. Only some extras have no pins."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    ranges = [*project["dependencies"], *itertools.chain(*extras.values())]
    specifiers = {canonicalize_name(wanted.name): wanted.specifier for wanted in map(Requirement, ranges)}
    assert [name for name, version in versions.items() if not specifiers[name].contains(version)] == []
    unpinned = {Requirement(line).name for name in ("quantization", "wandb") for line in extras[name]}
    assert specifiers.keys() - versions.keys() <= unpinned | {project["name"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"] == "Apache-2.0"
