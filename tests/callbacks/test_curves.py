"""Curves, images and the configuration in every logger, of a run that is resumed."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.summary import of_update
from rtdmd_lightning.data.prompts import load_prompts, spread
from rtdmd_lightning.utils.curve_names import score_name
from rtdmd_lightning.utils.loggers import log_configuration, log_pictures, log_warning
from tests.support.tiny import run, write_config

PROMPTS = "shapes:held_out:2"  # as in the config
SUMMARY = ("generator_loss", "fake_score_loss", "images_per_second")


def shown_prompts() -> list[str]:
    prompts = [entry["prompt"] for entry in load_prompts(PROMPTS)]
    return [prompts[index] for index in spread(len(prompts), 4)]


def train_and_resume(folder, pipeline, *options):
    """Two updates with an evaluation after the second, and two more."""
    config = str(write_config(folder, pipeline, generator_optimizer={"learning_rate": 0.1, "decay_steps": 2}))
    arguments = ["--config", config, f"--run_dir={folder}/mine", *options]
    fit.main([*arguments, "--trainer.max_steps=2"])
    return fit.main([*arguments, "--trainer.max_steps=4", "--ckpt_path=last"])


def rows_of(folder) -> list[dict]:
    return [json.loads(row) for row in (folder / "mine/eval.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_tensorboard_has_curves_images_and_the_configuration(tiny_folder, tmp_path):
    train_and_resume(tmp_path, tiny_folder)
    events = EventAccumulator(str(tmp_path / "mine"), size_guidance={"images": 0, "tensors": 0}).Reload()
    curves = events.Tags()["scalars"]
    assert {name.partition("/")[0] for name in curves} == {
        *("Summary", "eval", "eval_by_tag", "fake_score", "generator", "learning_rate", "time", "weight", "epoch")
    }
    for name in SUMMARY:
        assert [point.step for point in events.Scalars(f"Summary/{name}")] == [0, 1, 2, 3]
    # An evaluation is at the number of updates before it, in all files alike.
    for name in [name for name in rows_of(tmp_path)[0] if name.startswith("eval")]:
        points = {point.step: point.value for point in events.Scalars(name)}
        assert points == pytest.approx({row["step"]: row[name] for row in rows_of(tmp_path)}, abs=1e-5)
    assert events.Scalars("Summary/shapes")[-1].value == events.Scalars("eval/shapes")[-1].value
    # The rates of the updates themselves: the first half of the run fell to zero, and so does the second.
    assert [point.value for point in events.Scalars("learning_rate/generator")] == pytest.approx([0.1, 0.05] * 2)
    assert [point.value for point in events.Scalars("learning_rate/fake_score")] == pytest.approx([0.01] * 4)
    assert [image.step for image in events.Images("images")] == [2, 4]
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "    max_steps: 4\n" in text and "      decay_steps: 2\n" in text
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["model.batch_size"].number_value == 4 and "trainer.devices" not in hyperparameters


@pytest.mark.slow
def test_csv_has_the_curves(tiny_folder, tmp_path):
    train_and_resume(tmp_path, tiny_folder, "--trainer.logger=CSVLogger")
    (metrics,) = (tmp_path / "mine").rglob("metrics.csv")
    head = metrics.read_text().splitlines()[0].split(",")
    assert {"Summary/generator_loss", "eval/shapes", "learning_rate/generator"} <= set(head)
    assert sorted(path.name for path in (tmp_path / "mine/images").iterdir()) == [
        "step_000002.png",
        "step_000004.png",
    ]


BLOCK, HEAD = 32 * 1024, struct.Struct("<IHB")  # of a LevelDB log: checksum, length, kind
WHOLE, LAST = 1, 4


def records(file):
    """All that a run of Weights & Biases has written: protocol buffers in the blocks of a LevelDB log, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + HEAD.size <= len(data):
        if BLOCK - place % BLOCK < HEAD.size:  # too little is left of the block
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = HEAD.unpack_from(data, place)
        parts += data[place + HEAD.size : place + HEAD.size + length]
        place += HEAD.size + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_weights_and_biases_has_curves_images_with_captions_and_the_configuration(tiny_folder, tmp_path, monkeypatch):
    """Offline; a resumed run is the same run."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.project=x"]
    config = str(write_config(tmp_path, tiny_folder))
    for updates, more in ((2, []), (4, ["--ckpt_path=last"])):  # each in a process: wandb reads its environment once
        run("--config", config, f"--run_dir={tmp_path}/mine", f"--trainer.max_steps={updates}", *options, *more)
    files = sorted((tmp_path / "mine/wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2 and len({file.name for file in files}) == 1  # the name has the run's id
    for file, row in zip(files, rows_of(tmp_path), strict=True):
        found = list(records(file))
        history = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.HasField("history")
        ]
        (evaluated,) = (entry for entry in history if "eval/shapes" in entry)
        assert evaluated["trainer/global_step"] == row["step"]
        assert {name: evaluated[name] for name in row if name.startswith("eval")} == pytest.approx(
            {name: value for name, value in row.items() if name.startswith("eval")}, abs=1e-5
        )
        assert any("Summary/generator_loss" in entry for entry in history)
        (images,) = (entry for entry in history if "images/captions" in entry)
        assert images["images/captions"] == shown_prompts() and images["trainer/global_step"] == row["step"]
        with Image.open(file.parent / "files" / images["images/filenames"][0]) as first:
            assert first.size == (32, 32)
        told = {
            item.key: json.loads(item.value_json)
            for record in found
            for item in (*record.config.update, *record.run.config.update)
        }
        assert told["trainer"]["max_steps"] == row["step"] and told["model"]["init_args"]["batch_size"] == 4
    assert yaml.safe_load((tmp_path / "mine/config.yaml").read_text())["trainer"]["max_steps"] == 4


def test_a_warning_is_an_alert_in_weights_and_biases(monkeypatch):
    told = []
    monkeypatch.setattr(WandbLogger, "experiment", SimpleNamespace(alert=lambda **alert: told.append(alert)))
    log_warning(WandbLogger(offline=True), "eval/alarm", "it rises", 3)
    assert told == [{"title": "eval/alarm", "text": "it rises"}]


def test_nothing_imports_weights_and_biases_unless_it_is_the_logger(tmp_path):
    """Other loggers show what they can, and no images are an error."""
    loaded = "wandb" in sys.modules
    for logger in (TensorBoardLogger(tmp_path), CSVLogger(tmp_path)):
        log_configuration(logger, "a: {init_args: {b: 1}}")
        log_warning(logger, "name", "text", 1)
    log_pictures(CSVLogger(tmp_path), "images", None, 1)
    assert ("wandb" in sys.modules) == loaded


def test_the_summary_is_of_the_last_update():
    logged = {"reward/a": 2.0, "reward/b": 4.0, "reward/c": 9.0, "generator/loss_segment_1": 1.0}
    logged |= {"generator/loss_segment_4": 3.0, "fake_score/loss": 0.5, "generator/grad_norm": 7.0}
    assert of_update(logged, {"a": 1.0, "b": 0.5}) == {"reward": 4.0, "generator_loss": 2.0, "fake_score_loss": 0.5}
    assert of_update({}, {"a": 1.0}) == {}


def test_names_of_scores():
    names = ("eval/shapes", "eval_by_tag/shapes/counting", "step")
    assert [score_name(name) for name in names] == ["shapes", "shapes/counting", "step"]
