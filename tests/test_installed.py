"""What `make install` installs: pinned requirements, and the package itself in place, to be imported from any folder."""

import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.shipped import copy_shipped
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment's programs. It has the wheel of this package, and for the rest the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "environment"
    for name in ("rtdmd_lightning", "configs", "checkpoints"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in REPOSITORY.iterdir():
        if file.is_file():
            shutil.copy(file, source)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", f"-w{folder}", source], check=True)
    venv.create(environment)
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    (Path(packages) / "others.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    python = environment / "bin" / "python"
    subprocess.run([*pip, f"--python={python}", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return environment / "bin"


@pytest.mark.slow
def test_an_installed_package_brings_configs_and_the_toy_world(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command: str, folder: Path) -> str:
        arguments = [installed / "rtdmd", *command.split()]
        return subprocess.run(arguments, cwd=folder, env=environment, text=True, capture_output=True, check=True).stdout

    assert run("configs", tmp_path).startswith(str(installed.parent))
    run("configs --copy work", tmp_path)
    copied = tmp_path / "work"
    assert {path.name for path in copied.iterdir()} == {"configs", "checkpoints"}
    for name in ("configs", "checkpoints"):
        files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / name).rglob("*") if path.is_file()}
        assert {path.relative_to(copied) for path in (copied / name).rglob("*") if path.is_file()} == files
    printed = run("fit --config configs/cold_start/tiny_sd3.yaml --print_config", copied)
    assert yaml.safe_load(printed)["model"]["class_path"] == "rtdmd_lightning.modules.ACDMDModule"
    run("sample --base checkpoints/tiny-sd3 --prompt cross --steps 1 --resolution 32 --out drawn", copied)
    assert (copied / "drawn/000000.png").is_file()


def test_what_is_there_is_not_copied_over(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="checkpoints is there already"):
        copy_shipped(tmp_path)
    assert not (tmp_path / "configs").exists()


def test_every_requirement_is_pinned():
    """Both files: what a stranger installs is what these tests ran with."""
    for name in ("requirements.txt", "requirements-no-deps.txt"):
        lines = (REPOSITORY / name).read_text().splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#")), name


def test_the_pinned_versions_are_within_the_packages_ranges():
    """`pip install .` takes any version within a range, `make install` the pinned one."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    ranges = [*project["dependencies"], *itertools.chain(*extras.values())]
    specifiers = {canonicalize_name(wanted.name): wanted.specifier for wanted in map(Requirement, ranges)}
    assert [name for name, version in versions.items() if not specifiers[name].contains(version)] == []
    assert specifiers.keys() - versions.keys() == {project["name"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"] == "Apache-2.0"
