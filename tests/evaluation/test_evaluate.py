"""The command from end to end on a random pipeline: the same images whatever the batches, the processes and the restarts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rtdmd_lightning import evaluate
from rtdmd_lightning.configuration import compose
from rtdmd_lightning.errors import readable_errors
from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.evaluation.settings import Entry, PromptSet
from rtdmd_lightning.inference import InferenceModel
from rtdmd_lightning.models.lora import LoraSettings, adapter_parameters, adapter_state_dict, add_adapter
from rtdmd_lightning.rewards.base import Reward
from tests.tiny import REPOSITORY, tiny_backbone

SHIPPED = [path for path in sorted((REPOSITORY / "configs/evaluate").glob("*.yaml")) if path.name != "defaults.yaml"]
FILES = {"images", "results.json", "results.md", "report.html"}


class RednessReward(Reward):
    """Mean of the red channel, on another reported scale; notes how often its weights are read."""

    name = "redness"
    differentiable = True
    reported_scale = 10.0
    loads = 0

    def load(self) -> None:
        RednessReward.loads += 1

    def score(self, images, prompts, metadata):
        return images[:, 0].mean((1, 2))


class BrokenReward(RednessReward):
    def score(self, images, prompts, metadata):
        return images[:, 0].mean((1, 2)) / 0


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    """A random adapter in the published format."""
    backbone = tiny_backbone(tiny_folder)
    transformer = backbone.load()
    add_adapter(transformer, "a", LoraSettings(rank=32, alpha=64), backbone.lora_targets)
    for path, parameter in adapter_parameters(transformer, "a").items():
        if "lora_B" in path:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("adapter") / "generator_ema.pt"
    torch.save(adapter_state_dict(transformer, "a"), file)
    return file


@pytest.fixture
def config(tiny_folder, adapter, tmp_path):
    """Two entries, two prompt sets of 6 and 3 prompts; returns the arguments of a run into a folder."""
    (tmp_path / "prompts.txt").write_text("a circle\na square\na cross\n")
    shapes = {"class_path": "rtdmd_lightning.rewards.shapes.ShapesReward"}
    redness = {"class_path": "tests.evaluation.test_evaluate.RednessReward"}
    options = {"resolution": 32, "use_t5": False, "max_sequence_length": 1, "dtype": "float32"}
    backbone = {
        "class_path": "rtdmd_lightning.models.SD3Backbone",
        "init_args": {"pretrained": str(tiny_folder)} | options,
    }
    document = {
        "defaults": [str(REPOSITORY / "configs/evaluate/defaults.yaml")],
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "callbacks": []},
        "batch_size": 4,
        "baseline": "teacher",
        "output": str(tmp_path / "out"),
        "entries": {
            "teacher": {"backbone": backbone, "steps": 2, "guidance_scale": 3.0, "eta": 0.0},
            "a student": {"backbone": backbone, "adapters": [str(adapter)], "steps": [1000, 500]},
        },
        "sets": {
            "shapes": {"prompts": "shapes:held_out:1", "rewards": [shapes, redness]},
            "own": {"prompts": str(tmp_path / "prompts.txt"), "rewards": [redness]},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """How many images every call of `generate` made."""
    calls: list[int] = []
    generate = InferenceModel.generate

    def counting(self, prompts, indices, *, seed):
        calls.append(len(prompts))
        return generate(self, prompts, indices, seed=seed)

    monkeypatch.setattr(InferenceModel, "generate", counting)
    return calls


def run(config: Path, *arguments: str) -> dict:
    """The command in this process; `results.json` of the folder that it wrote."""
    evaluate.main(["--config", str(config), *arguments])
    output = next((a.removeprefix("--output=") for a in arguments if a.startswith("--output=")), config.parent / "out")
    assert {path.name for path in Path(output).iterdir()} == FILES
    return json.loads((Path(output) / "results.json").read_text())


def images(output: Path) -> dict[str, torch.Tensor]:
    return {str(path.relative_to(output)): read_image(path) for path in sorted(output.rglob("*.png"))}


def test_scores_are_those_of_the_images_that_the_model_draws(config, tiny_folder, adapter):
    """By name, set and index, without any of the evaluation's own machinery."""
    results = run(config)
    model = InferenceModel(tiny_backbone(tiny_folder), [str(adapter)], [1000, 500])
    model.load(torch.device("cpu"))
    expected = model.generate(["a circle", "a square", "a cross"], [0, 1, 2], seed=0)
    assert list(results["entries"]) == ["teacher", "a student"]  # in the order of the config
    rows = [row for row in results["sets"]["own"]["images"] if row["entry"] == "a student"]
    for row, image in zip(rows, expected, strict=True):
        stored = read_image(config.parent / "out" / row["file"])
        torch.testing.assert_close(stored, image, rtol=0, atol=0.51 / 255)
        assert row["scores"] == {"redness": pytest.approx(10 * float(stored[0].mean()), rel=1e-6)}
    assert [row["prompt"] for row in rows] == ["a circle", "a square", "a cross"]
    assert len(results["sets"]["shapes"]["images"]) == 12


def test_the_same_images_whatever_the_batch_size(config, drawn):
    run(config)
    assert drawn == [4, 4, 1] * 2
    one_by_one = config.parent / "one"
    run(config, f"--output={one_by_one}", "--batch_size=1")
    found, expected = images(one_by_one), images(config.parent / "out")
    assert found.keys() == expected.keys() and len(found) == 18
    for name, image in found.items():  # rounding in the network may tip a pixel to the next of 256 levels
        torch.testing.assert_close(image, expected[name], rtol=0, atol=1.1 / 255)
    assert not torch.equal(*list(found.values())[:2])


def test_an_image_is_never_drawn_twice(config, drawn):
    first = run(config)
    drawn.clear()
    (report := config.parent / "out" / "results.json").unlink()
    assert run(config) == first and drawn == [] and report.is_file()
    expected = images(config.parent / "out")
    for lost in (1, 2, 7):  # two of the teacher's, one of the student's
        (config.parent / "out" / first["sets"]["shapes"]["images"][lost]["file"]).unlink()
    run(config)
    assert drawn == [2, 1]
    for name, image in images(config.parent / "out").items():
        torch.testing.assert_close(image, expected[name], rtol=0, atol=1.1 / 255)


def test_what_changed_is_drawn_anew_and_the_rest_kept(config, drawn):
    run(config)
    drawn.clear()
    run(config, "--entries.teacher.seed=5")
    assert sum(drawn) == 9
    drawn.clear()
    (config.parent / "prompts.txt").write_text("a circle\na square\na cross\na triangle\n")
    run(config)
    assert sum(drawn) == 2  # one new prompt, of two entries; the images of seed 0 are still there


def test_a_killed_run_goes_on(config, monkeypatch):
    """Killed while drawing the second batch: what was drawn stays, and no half image."""
    generate, calls = InferenceModel.generate, []

    def dying(self, prompts, indices, *, seed):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, indices, seed=seed)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(InferenceModel, "generate", dying)
        evaluate.main(["--config", str(config)])
    assert len(list((config.parent / "out").rglob("*.png"))) == 4
    resumed = run(config)
    assert resumed == run(config, f"--output={config.parent / 'straight'}")


def test_weights_are_read_for_scoring_only_and_dropped_after(config, monkeypatch):
    monkeypatch.setattr(RednessReward, "loads", 0)
    run(config)
    assert sys.modules["tests.evaluation.test_evaluate"].RednessReward.loads == 2  # once for each set


def test_two_processes_write_the_results_of_one(config):
    """Byte by byte, also where one of them finds nothing left to draw for an entry."""
    one, two = config.parent / "one", config.parent / "two"
    rows = [row for of_set in run(config, f"--output={one}")["sets"].values() for row in of_set["images"]]
    for row in [row for row in rows if row["entry"] == "a student"][4:8]:  # all of the second process's share
        (two / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one / row["file"], two / row["file"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = ["--config", str(config), "--trainer.devices=2", f"--output={two}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [*launcher, "rtdmd_lightning.evaluate", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name in ("results.json", "results.md", "report.html"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert all(torch.equal(image, images(two)[name]) for name, image in images(one).items())
    assert finished.stdout.count("the images side by side") == 1


def refused(capsys, config: Path, *arguments: str) -> str:
    """The sentence on stderr."""
    with pytest.raises(SystemExit) as exit_, readable_errors():
        evaluate.main(["--config", str(config), *arguments])
    assert exit_.value.code == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and len(sentences[0]) < 400
    return sentences[0]


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--no_such_key=1", "no_such_key"),
        ("--batch_size=0", "batch_size"),
        ("--baseline=nobody", "'nobody' is not one of the entries: 'teacher', 'a student'"),
        ("--entries.teacher.stps=1", "stps"),
        ("--entries.teacher.guidance_scale=0.5", "the entry 'teacher': guidance_scale"),
        ("--entries.teacher.eta=2", "the entry 'teacher': eta"),
        ("--entries.teacher.steps=[250,500]", "the entry 'teacher': steps must fall"),
        ("--entries.teacher.adapters=[/nowhere.pt]", "the entry 'teacher': the adapter /nowhere.pt does not exist"),
        ("--entries={}", "at least one entry"),
        ("--sets={}", "one prompt set"),
        ("--sets.own.prompts=/nowhere.txt", "/nowhere.txt"),
        ("--sets.own.rewards=[]", "the rewards of the set 'own'"),
        ("--trainer.no_such_key=1", "no_such_key"),
        ("--gallery.no_such_key=1", "no_such_key"),
        ("--config=/nowhere.yaml", "/nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(config, capsys, option, wanted):
    assert wanted in refused(capsys, config, option)
    assert not (config.parent / "out").exists()


def test_rewards_of_one_name(config, capsys):
    twice = "[rtdmd_lightning.rewards.shapes.ShapesReward, rtdmd_lightning.rewards.shapes.ShapesReward]"
    assert "['shapes', 'shapes']" in refused(capsys, config, f"--sets.own.rewards={twice}")


def test_a_score_that_is_no_number_names_its_image(config, capsys):
    sentence = refused(capsys, config, "--sets.own.rewards=[tests.evaluation.test_evaluate.BrokenReward]")
    assert "redness gives" in sentence and ".png" in sentence


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_builds(path, monkeypatch):
    """Apart from files that are the user's to fetch or train."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(evaluate, "check_settings", lambda *_: None)
    built, _, entries = evaluate.parse([f"--config={path}", "--trainer.accelerator=cpu", "--trainer.devices=1"])
    assert built.baseline in entries and list(entries) == list(compose(path)["entries"])
    assert all(isinstance(entry, Entry) and entry.model() for entry in built.entries.values())
    assert all(isinstance(prompt_set, PromptSet) for prompt_set in built.sets.values())
