"""Files of the hub are downloaded once, by however many processes that want them at once."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.fake_hub import TOKEN, fake_hub
from tests.support.tiny import REPOSITORY

NAME = "someone/tiny"
# Both start when both have imported what they need.
PROCESS = """
import sys, time
from pathlib import Path
from diffusers import StableDiffusion3Pipeline
from rtdmd_lightning.models.folder import fetch
folder, rank = Path(sys.argv[1]), sys.argv[2]
(folder / rank).touch()
while not ((folder / "0").exists() and (folder / "1").exists()):
    time.sleep(0.001)
fetch(StableDiffusion3Pipeline, "someone/tiny", {"text_encoder_3": None})
"""


@pytest.mark.slow
def test_two_processes_fetch_every_file_once_and_none_of_a_part_that_is_given(tiny_folder, tmp_path):
    files = {str(file.relative_to(tiny_folder)): file.read_bytes() for file in tiny_folder.rglob("*") if file.is_file()}
    with fake_hub() as hub:
        hub.repositories[NAME] = files
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        command = [sys.executable, "-c", PROCESS, str(tmp_path)]
        processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
        fetched = Counter(files[path] for path in hub.fetched)
    wanted = {content for path, content in files.items() if not path.startswith("text_encoder_3/")}
    assert files["transformer/diffusion_pytorch_model.safetensors"] in wanted
    assert fetched == Counter(wanted)  # the cache keeps files by content, of which some have the same
