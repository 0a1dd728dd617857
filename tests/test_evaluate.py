"""The command from end to end on a random pipeline: the same images whatever the batches, the processes and the restarts."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from rtdmd_lightning import evaluate
from rtdmd_lightning.evaluation import published
from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.evaluation.settings import Entry, PromptSet
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.roles.lora import LoraSettings, adapter_parameters, adapter_state_dict, add_adapter
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import readable_errors
from tests.support.redness import RednessReward
from tests.support.tiny import REPOSITORY, tiny_backbone

pytestmark = pytest.mark.slow

SHIPPED = [path for path in sorted((REPOSITORY / "configs/evaluate").glob("*.yaml")) if path.name != "defaults.yaml"]
REAL = [path for path in SHIPPED if path.name != "tiny_sd3.yaml"]
ON_A_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
PICTURES = {"side_by_side_shapes.png", "side_by_side_own.png"}
FILES = {"images", "results.json", "results.md", "report.html", *PICTURES}


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


@pytest.fixture(scope="module")
def config(tiny_folder, adapter, tmp_path_factory):
    """Two entries, two prompt sets of 6 and 3 prompts, batches of 4."""
    tmp_path = tmp_path_factory.mktemp("config")
    (tmp_path / "prompts.txt").write_text("a circle\na square\na cross\n")
    shapes = {"class_path": "rtdmd_lightning.rewards.shapes.ShapesReward"}
    redness = {"class_path": "tests.support.redness.RednessReward"}
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


def run(config: Path, output: Path, *arguments: str) -> dict:
    """The command in this process; the `results.json` that it wrote."""
    evaluate.main(["--config", str(config), f"--output={output}", *arguments])
    assert {path.name for path in output.iterdir()} == FILES
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run without any incident: its folder, its results and the weights in memory at each load of a reward."""
    output = tmp_path_factory.mktemp("straight")
    RednessReward.at_loads.clear()
    return output, run(config, output), list(RednessReward.at_loads)


@pytest.fixture
def again(straight, tmp_path):
    """A copy of that run's folder."""
    return Path(shutil.copytree(straight[0], tmp_path / "again"))


def images(output: Path) -> dict[str, torch.Tensor]:
    return {str(path.relative_to(output)): read_image(path) for path in sorted((output / "images").rglob("*.png"))}


def test_scores_are_those_of_the_images_that_the_model_draws(straight, tiny_folder, adapter):
    """By name, set and index, without any of the evaluation's own machinery."""
    output, results, _ = straight
    model = InferenceModel(tiny_backbone(tiny_folder), [str(adapter)], [1000, 500])
    model.load(torch.device("cpu"))
    expected = model.generate(["a circle", "a square", "a cross"], [0, 1, 2], seed=0)
    assert list(results["entries"]) == ["teacher", "a student"]  # in the order of the config
    rows = [row for row in results["sets"]["own"]["images"] if row["entry"] == "a student"]
    for row, image in zip(rows, expected, strict=True):
        stored = read_image(output / row["file"])
        torch.testing.assert_close(stored, image, rtol=0, atol=0.51 / 255)
        assert row["scores"] == {"redness": pytest.approx(10 * float(stored[0].mean()), rel=1e-6)}
    assert [row["prompt"] for row in rows] == ["a circle", "a square", "a cross"]
    assert len(results["sets"]["shapes"]["images"]) == 12


def test_weights_are_read_for_scoring_and_dropped_after(straight):
    assert straight[2] == [0, 0]  # the second set's reward found nothing left of the first's


def assert_same_images(output: Path, expected: Path) -> None:
    """But for rounding in the network, which may tip a pixel to the next of 256 levels."""
    found, wanted = images(output), images(expected)
    assert found.keys() == wanted.keys() and len(found) == 18
    for name, image in found.items():
        torch.testing.assert_close(image, wanted[name], rtol=0, atol=1.1 / 255, msg=name)


def test_the_same_images_whatever_the_batch_size(config, straight, tmp_path, drawn):
    run(config, tmp_path, "--batch_size=1")
    assert drawn == [1] * 18
    assert_same_images(tmp_path, straight[0])
    different = list(images(tmp_path).values())
    assert not any(torch.equal(a, b) for a, b in pairwise(different))


def test_an_image_is_never_drawn_twice(config, straight, again, drawn):
    (again / "results.json").unlink()
    assert run(config, again) == straight[1] and drawn == []
    for lost in (1, 2, 7):  # two of the teacher's, one of the student's
        (again / straight[1]["sets"]["shapes"]["images"][lost]["file"]).unlink()
    run(config, again)
    assert drawn == [2, 1]
    assert_same_images(again, straight[0])


def test_what_changed_is_drawn_anew_and_the_rest_kept(config, again, tmp_path, drawn):
    (tmp_path / "longer.txt").write_text("a circle\na square\na cross\na triangle\n")
    run(config, again, "--entries.teacher.seed=5", f"--sets.own.prompts={tmp_path / 'longer.txt'}")
    assert sum(drawn) == 10 + 1  # all of the teacher's, and the student's new prompt
    assert len(images(again)) == 18 + 11


def test_several_images_of_a_prompt_are_those_of_a_file_that_repeats_its_prompts(
    config, straight, again, tmp_path, drawn
):
    """The first ones are there already. Nothing is drawn for the file: its images have the same names."""
    several = run(config, again, "--sets.own.images_per_prompt=3")["sets"]["own"]
    assert sum(drawn) == 2 * 2 * 3
    assert (several["prompts"], several["images_per_prompt"]) == (3, 3)
    of_student = [row for row in several["images"] if row["entry"] == "a student"]
    assert [row["index"] for row in of_student] == list(range(9))
    assert [row["prompt"] for row in of_student] == ["a circle", "a square", "a cross"] * 3
    once = [row for row in straight[1]["sets"]["own"]["images"] if row["entry"] == "a student"]
    assert of_student[:3] == once
    assert "own: 3 prompts, 3 images each" in (again / "results.md").read_text()

    (tmp_path / "thrice.txt").write_text("a circle\na square\na cross\n" * 3)
    drawn.clear()
    thrice = run(config, again, f"--sets.own.prompts={tmp_path / 'thrice.txt'}")["sets"]["own"]
    assert drawn == [] and thrice["images"] == several["images"] and thrice["prompts"] == 9


def test_results_say_what_the_rewards_were_made_with(straight):
    """Defaults too."""
    shapes = {"class_path": "rtdmd_lightning.rewards.shapes.ShapesReward", "init_args": {"strict": False}}
    found = straight[1]["sets"]["shapes"]["rewards"]
    assert list(found) == ["shapes", "redness"] and found["shapes"] == shapes
    assert found["redness"]["class_path"].endswith("redness.RednessReward")
    assert "scored with shapes (strict=False)" in (straight[0] / "results.md").read_text()


def test_published_figures_are_shown_for_the_published_model_and_draw_nothing_anew(config, again, drawn, monkeypatch):
    """Where the published model and set are these: a row under the entry that says that it is of the kind, nowhere else."""
    base = yaml.safe_load(config.read_text())["entries"]["teacher"]["backbone"]["init_args"]["pretrained"]
    monkeypatch.setattr(
        published, "ROWS", [published.PublishedRow(base, "RTDMD", 4, "own", {"redness": 7.5, "x": 1.0})]
    )
    monkeypatch.setitem(published.FACTS["prompts"], "own", 3)
    found = run(config, again, "--entries.a student.published=RTDMD")["sets"]
    assert drawn == []
    assert (found["own"]["published"], found["shapes"]["published"]) == ({"a student": {"redness": 7.5}}, {})
    text = (again / "results.md").read_text()
    assert text.count("| RTDMD (paper) | 7.5000 |\n") == 1 and text.count("paper: arXiv 2605.26108") == 1


def test_a_killed_run_goes_on(config, straight, tmp_path, monkeypatch):
    """Killed while drawing the second batch: what was drawn stays, and no half image."""
    generate, calls = InferenceModel.generate, []

    def dying(self, prompts, indices, *, seed):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, indices, seed=seed)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(InferenceModel, "generate", dying)
        evaluate.main(["--config", str(config), f"--output={tmp_path}"])
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".png"] * 4
    assert run(config, tmp_path) == straight[1]


def body_of(report: Path) -> str:
    """Without its head, where date and command stand."""
    return report.read_text().partition("<main>")[2]


def test_two_processes_write_the_results_of_one(config, straight, tmp_path):
    """Byte by byte, also where one of them finds nothing left to draw for an entry."""
    one, results, _ = straight
    rows = [row for of_set in results["sets"].values() for row in of_set["images"] if row["entry"] == "a student"]
    for row in rows[4:8]:  # all of the second process's share
        (tmp_path / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one / row["file"], tmp_path / row["file"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = ["--config", str(config), f"--output={tmp_path}", "--trainer.devices=2"]
    finished = subprocess.run(
        [*launcher, "rtdmd_lightning.evaluate", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name in ("results.json", "results.md", *PICTURES):
        assert (one / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert body_of(one / "report.html") == body_of(tmp_path / "report.html")
    found = images(tmp_path)
    assert all(torch.equal(image, found[name]) for name, image in images(one).items())
    assert finished.stdout.count("the images side by side") == 1


def test_the_command_leaves_the_process_group_when_it_is_done(process_group, config, again, monkeypatch):
    """A group that is left to the interpreter's end may abort a finished run: see `closing_process_group`."""
    monkeypatch.setattr(sys, "argv", ["evaluate", "--config", str(config), f"--output={again}"])
    runpy.run_path(evaluate.__file__, run_name="__main__")
    assert not torch.distributed.is_initialized()


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
        ("--sets.own.images_per_prompt=0", "images_per_prompt"),
        ("--sets.own.verdict=taste", "the set 'own': verdict must be one of its rewards ('redness')"),
        ("--resolution=0", "resolution"),
        ("--entries.teacher.published=baseline", "the entry 'teacher': published must be one of 'RTDMD', 'teacher'"),
        ("--gallery.no_such_key=1", "no_such_key"),
        ("--gallery.side_by_side=0", "side_by_side"),
        ("--gallery.side=0", "gallery.side"),
        ("--gallery.prompts=-1", "gallery.prompts"),
        ("--output=/proc/version", "--output must be a folder"),
        ("--batch=3", "--batch"),
        ("--config=/nowhere.yaml", "/nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(config, capsys, option, wanted):
    assert wanted in refused(capsys, config, option)
    assert not (config.parent / "out").exists()


def test_sets_whose_pictures_would_be_one_file(config, capsys):
    twice = "{prompts: 'shapes:held_out:1', rewards: [tests.support.redness.RednessReward]}"
    sentence = refused(capsys, config, f"--sets={{a set: {twice}, 'A Set!': {twice}}}")
    assert "the sets 'a set', 'A Set!'" in sentence


def test_tags_that_are_no_texts(config, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "tag": "x"}\n{"prompt": "b", "tag": 3}\n')
    sentence = refused(capsys, config, f"--sets.own.prompts={tmp_path / 'prompts.jsonl'}")
    assert "line 2: its 'tag' must be a text, not 3" in sentence


def test_a_reward_that_fails_names_itself_and_the_image(config, again, capsys):
    sentence = refused(capsys, config, f"--output={again}", "--sets.own.rewards=[tests.support.redness.ListReward]")
    assert "'redness' returned a list" in sentence and ".png" in sentence


def test_rewards_of_one_name(config, capsys):
    twice = "[rtdmd_lightning.rewards.shapes.ShapesReward, rtdmd_lightning.rewards.shapes.ShapesReward]"
    assert "['shapes', 'shapes']" in refused(capsys, config, f"--sets.own.rewards={twice}")


def test_a_score_that_is_no_number_names_its_image(config, again, capsys):
    sentence = refused(capsys, config, f"--output={again}", "--sets.own.rewards=[tests.support.redness.BrokenReward]")
    assert "redness gives" in sentence and ".png" in sentence


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_builds(path, monkeypatch):
    """Apart from files that are the user's to fetch or train."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(evaluate, "check_settings", lambda *_: None)
    built, _, settings = evaluate.parse([f"--config={path}", *ON_A_CPU])
    assert built.baseline in built.entries
    assert list(built.entries) == list(settings["entries"]) == list(compose(path)["entries"])
    assert all(isinstance(entry, Entry) and entry.model() for entry in built.entries.values())
    assert all(isinstance(prompt_set, PromptSet) for prompt_set in built.sets.values())


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_are_evaluated_as_the_authors_do(path, monkeypatch):
    """METHOD section 5.1: 1024 pixels, seed 42, their number of images; students in METHOD's steps without guidance."""
    monkeypatch.setattr(evaluate, "check_settings", lambda *_: None)
    built, _, _ = evaluate.parse([f"--config={path}", *ON_A_CPU])
    assert [(entry.backbone.resolution, entry.seed) for entry in built.entries.values()] == [(1024, 42)] * 4
    students = [entry for entry in built.entries.values() if entry.adapters]
    assert [len(student.adapters) for student in students] == [1, 2]
    for student in students:
        assert (student.steps, student.eta, student.model().guidance_scale) == ([1000, 750, 500, 250], 0.9, 1.0)
    images = {"DrawBench": 5, "HPSv3": 1, "GenEval": 4, "GenEval2": 1, "OCR": 1}
    assert {name: prompt_set.images_per_prompt for name, prompt_set in built.sets.items()} == images


def test_flux_students_draw_without_the_teachers_guidance_input():
    """METHOD section 0.1: 3.5 is the teacher's alone."""
    entries = compose(REPOSITORY / "configs/evaluate/flux1_dev.yaml")["entries"]
    assert not any("guidance" in entry["backbone"]["init_args"] for entry in entries.values())
    scales = {name: entry.get("guidance_scale", 1.0) for name, entry in entries.items()}
    assert scales == {"teacher": 3.5, "teacher in 4 steps": 3.5, "cold start": 1.0, "RTDMD": 1.0}


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_one_option_changes_the_resolution_of_all_entries(path, monkeypatch):
    """Of the models that are made, and of the settings, which the images' names and results.json are made of."""
    monkeypatch.setattr(evaluate, "check_settings", lambda *_: None)
    built, _, settings = evaluate.parse([f"--config={path}", "--resolution=512", *ON_A_CPU])
    assert {entry.backbone.resolution for entry in built.entries.values()} == {512}
    assert {entry["backbone"]["init_args"]["resolution"] for entry in settings["entries"].values()} == {512}
