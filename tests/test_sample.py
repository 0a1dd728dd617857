"""The sampling command: its images, its record, and several processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rtdmd_lightning import sample
from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.models.families import open_backbone
from rtdmd_lightning.roles.inference import METHOD_STEPS, InferenceModel
from rtdmd_lightning.roles.lora import adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY, tiny_backbone, tiny_module

BACKBONE = '{"use_t5": false, "max_sequence_length": 1, "dtype": "float32"}'
PROMPTS = ["a photo of a red circle", "a photo of two crosses", "a photo of a blue square"]


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    module = tiny_module(tiny_folder)
    for role in (GENERATOR, EMA):
        torch.save(adapter_state_dict(module.roles.transformer, role), folder / f"{role}.pt")
    return [str(folder / f"{role}.pt") for role in (GENERATOR, EMA)]


@pytest.fixture
def arguments(tiny_folder, adapters):
    return [f"--base={tiny_folder}", "--adapters", *adapters, f"--backbone={BACKBONE}", "--device=cpu", "--seed=3"]


def drawn(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def record(folder) -> dict:
    return json.loads((folder / "sample.json").read_text())


def test_the_command_draws_the_stacks_images_and_records_how(tiny_folder, adapters, arguments, tmp_path):
    sample.main([*arguments, "--prompt", *PROMPTS, "--steps=4", "--eta=0.9", f"--out={tmp_path}"])
    model = InferenceModel(tiny_backbone(tiny_folder), adapters, METHOD_STEPS, eta=0.9)
    model.load(torch.device("cpu"))
    expected = model.generate(PROMPTS, [0, 1, 2], seed=3)
    files = [entry["file"] for entry in record(tmp_path)["images"]]
    found = torch.stack([read_image(tmp_path / file) for file in files])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.51 / 255)
    assert record(tmp_path)["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert [entry["prompt"] for entry in record(tmp_path)["images"]] == PROMPTS
    assert len(set(drawn(tmp_path))) == 3


def test_the_record_alone_draws_the_same_images_again(arguments, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    options = [
        f"--prompts={tmp_path / 'prompts.txt'}",
        "--images_per_prompt=2",
        "--steps=[1000,400]",
        "--guidance_scale=2",
    ]
    sample.main([*arguments, *options, "--batch_size=3", f"--out={tmp_path / 'a'}"])
    recorded = record(tmp_path / "a")
    assert [entry["prompt"] for entry in recorded["images"]] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    again = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in recorded["options"].items() if name not in ("out", "adapters", "prompt")]  # fmt: skip
    sample.main([*again, "--adapters", *recorded["options"]["adapters"], f"--out={tmp_path / 'b'}"])
    assert drawn(tmp_path / "a") == drawn(tmp_path / "b") and len(set(drawn(tmp_path / "a"))) == 4
    assert record(tmp_path / "b")["options"] == recorded["options"] | {"out": str(tmp_path / "b")}
    assert record(tmp_path / "b")["adapter_files"] == recorded["adapter_files"]


@pytest.mark.slow
def test_two_processes_draw_the_images_of_one(arguments, tmp_path):
    """Three batches for two processes, through torchrun; each draws some, and the record is the same."""
    options = [*arguments, "--prompt", *PROMPTS, "--images_per_prompt=2", "--batch_size=2"]
    sample.main([*options, f"--out={tmp_path / 'one'}"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [*launcher, "rtdmd_lightning.sample", *options, f"--out={tmp_path / 'two'}"],
        env=environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert drawn(tmp_path / "one") == drawn(tmp_path / "two") and len(drawn(tmp_path / "two")) == 6
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one | {"options": {**one["options"], "out": ""}} == two | {"options": {**two["options"], "out": ""}}


def test_batches_are_dealt_to_the_processes(arguments, tmp_path, monkeypatch):
    """The second of two processes draws the second batch and no other."""
    from contextlib import nullcontext

    monkeypatch.setattr(sample, "processes", lambda: nullcontext((1, 2)))
    sample.main([*arguments, "--prompt", *PROMPTS, "--batch_size=1", f"--out={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["000001.png"]


def test_the_pipelines_own_schedule_is_an_option(tiny_folder):
    backbone = tiny_backbone(tiny_folder)
    job = sample.Job(str(tiny_folder), tiny_folder, steps=7, schedule="pipeline")
    assert job.model(backbone).steps == 7
    assert sample.Job(str(tiny_folder), tiny_folder, steps=2).model(backbone).steps == [1000, 500]


def test_the_resolution_of_the_bases_own_pipeline_is_the_default(tiny_folder):
    assert open_backbone(str(tiny_folder)).resolution == 32
    assert open_backbone(str(tiny_folder), 16).resolution == 16


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "either --prompt or --prompts"),
        (["--prompt", "a", "--prompts=shapes:held_out:1"], "either --prompt or --prompts"),
        (["--prompt", "a", "--batch_size=0"], "at least 1"),
        (["--prompt", "a", "--steps=0"], "number of steps"),
        (["--prompt", "a", "--steps=[500,1000]"], "steps must fall"),
        (["--prompt", "a", "--adapters", "/nowhere.pt"], "does not exist"),
        (["--prompt", "a", "--device=nosuch"], "--device nosuch cannot be used"),
    ],
)
def test_bad_input_is_refused(options, wanted, arguments, tmp_path):
    with pytest.raises(UserError, match=wanted):
        sample.main([*arguments, *options, f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_an_unknown_backbone_option_is_refused(tiny_folder):
    with pytest.raises(Exception, match="use_t6"):
        open_backbone(str(tiny_folder), options={"use_t6": True})
