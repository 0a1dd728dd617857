"""The package as a library: its names, its quick import, and the examples of its README, which are run."""

import ast
import os
import re
import subprocess
import sys

import pytest

import rtdmd_lightning
from tests.support.tiny import REPOSITORY

README = (REPOSITORY / "rtdmd_lightning/README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README.split("## As a library")[1], flags=re.DOTALL)


@pytest.mark.parametrize("name", rtdmd_lightning.LIBRARY)
def test_every_name_is_there_and_its_modules_own(name):
    found = getattr(rtdmd_lightning, name)
    assert found.__name__ == name and found.__module__.startswith(f"rtdmd_lightning.{rtdmd_lightning.LIBRARY[name]}")
    assert name in dir(rtdmd_lightning) and name in rtdmd_lightning.__all__ and f"`{name}`" in README


def test_type_checkers_are_given_the_same_names_from_the_same_modules():
    tree = ast.parse((REPOSITORY / "rtdmd_lightning/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {alias.asname: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert imports == {name: f"rtdmd_lightning.{module}" for name, module in rtdmd_lightning.LIBRARY.items()}


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'load_studnet'"):
        _ = rtdmd_lightning.load_studnet


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=["draw", "train"])
def test_the_examples_run(example, tmp_path):
    """In a folder beside the toy checkpoints, as a notebook would."""
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written in ({"picture.png"}, {f"runs/library/cold_start/{name}" for name in RESULTS})


RESULTS = ("generator_ema.pt", "fake_score.pt", "pytorch_lora_weights.safetensors")
