"""`CPSScheduler` as a file in a model repository draws what the package's own draws, where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from rtdmd_lightning import CPSScheduler
from rtdmd_lightning.publishing.scheduler_file import FORMULAS, scheduler_text, write_scheduler
from tests.support import draw_alone
from tests.support.tiny import save_tiny_pipeline
from tests.support.tiny_backbones import save_tiny_flux

SAVE = {"sd3": save_tiny_pipeline, "flux": lambda folder: save_tiny_flux(folder, guidance_embeds=True)}


@pytest.mark.slow
@pytest.mark.parametrize("family", SAVE)
def test_a_repository_with_the_file_draws_the_same_bits_without_the_package(family, tmp_path):
    """diffusers finds the class by `model_index.json` and reads eta from `scheduler_config.json`."""
    folder, out = tmp_path / "repository", tmp_path / "out.pt"
    SAVE[family](folder)
    ours = DiffusionPipeline.from_pretrained(folder)
    ours.scheduler = CPSScheduler.from_config(ours.scheduler.config, eta=0.7)
    ours.scheduler.save_pretrained(folder / "scheduler")
    assert write_scheduler(folder) == folder / "scheduler" / "scheduling_cps.py"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["scheduling_cps", "CPSScheduler"]}))
    run_alone([str(Path(draw_alone.__file__)), str(folder), str(out)], tmp_path)
    found = torch.load(out)
    assert found["module"].startswith("diffusers_modules.local")
    assert torch.equal(found["images"], draw_alone.pictures(ours))
    ours.scheduler = CPSScheduler.from_config(ours.scheduler.config, eta=0.8)
    assert not torch.equal(found["images"], draw_alone.pictures(ours))


def run_alone(arguments: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")  # where diffusers puts a repository's code
    finished = subprocess.run([sys.executable, "-P", *arguments], env=environment, text=True, capture_output=True)
    assert finished.returncode == 0, finished.stderr


def test_the_file_imports_what_diffusers_does_and_holds_each_formula_once():
    text = scheduler_text()
    imported = [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert set(imported) <= {"collections", "diffusers", "itertools", "math", "numpy", "torch"}
    assert [text.count(f"def {formula.__name__}(") for formula in FORMULAS] == [1] * len(FORMULAS)
    compile(text, "scheduling_cps.py", "exec")
