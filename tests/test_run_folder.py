"""All that a run writes is in its folder, whatever loggers it has, fresh and resumed."""

import csv
import errno
import json
import logging
from functools import partial

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.monitors import check_monitors
from rtdmd_lightning.fitting.command_line import CONFIGURATION_KEY
from rtdmd_lightning.utils import run_folder
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

OWN = {
    "config.yaml",
    "eval.jsonl",
    "images/step_000002.png",
    "images/step_000004.png",
    "checkpoints/last.ckpt",
    "cold_start/fake_score.pt",
    "cold_start/generator_ema.pt",
    "cold_start/pytorch_lora_weights.safetensors",
}
LOGGERS = {
    "none": ["--trainer.logger=false"],
    "TensorBoard": [],
    "CSV": ["--trainer.logger=CSVLogger"],
    "elsewhere": ["--trainer.logger=tests.support.loggers.ElsewhereLogger", "--trainer.logger.project=x"],
}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("logger", LOGGERS)
def test_a_runs_files_are_in_its_folder_and_nowhere_else(logger, tiny_folder, tmp_path, monkeypatch):
    config, here = str(write_config(tmp_path / "config", tiny_folder)), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = ["--config", config, "--run_dir=mine", "--callbacks.last.save_top_k=1", *LOGGERS[logger]]
    fit.main([*arguments, "--trainer.max_steps=2"])
    with pytest.raises(UserError, match=r"mine holds a run already: .*--ckpt_path=last.*--run_dir"):
        fit.main(arguments)
    assert fit.main([*arguments, "--trainer.max_steps=4", "--ckpt_path=last"]).trainer.global_step == 4
    assert {path.name for path in here.iterdir()} == {"mine"}
    assert files(here / "mine") >= OWN
    rows = [json.loads(row)["step"] for row in (here / "mine/eval.jsonl").read_text().splitlines()]
    assert rows == [2, 4]
    if logger == "CSV":
        (metrics,) = (here / "mine").rglob("metrics.csv")
        with metrics.open(newline="") as stream:
            steps = [int(row["step"]) for row in csv.DictReader(stream)]
        assert sorted(set(steps)) == [0, 1, 2, 3, 4]  # an update's numbers stand before it, an evaluation's after it


@pytest.mark.slow
def test_a_resumed_run_tells_its_other_options_once_and_takes_them(tiny_folder, tmp_path, caplog):
    config = ["--config", str(write_config(tmp_path, tiny_folder))]
    caplog.set_level(logging.INFO, logger="lightning.pytorch")  # whatever other tests have made of it
    fit.main([*config, "--trainer.max_steps=1"])
    caplog.clear()
    fit.main([*config, "--trainer.max_steps=1", "--ckpt_path=last"])
    assert "other options" not in caplog.text
    caplog.clear()
    resumed = fit.main([*config, "--trainer.max_steps=2", "--model.ema.decay=0.5", "--ckpt_path=last"])
    (told,) = (record.message for record in caplog.records if "other options" in record.message)
    assert (
        "trainer.max_steps 2 (was 1)" in told and "model.ema.decay 0.5 (was 0.99)" in told and told.count("(was") == 2
    )
    assert resumed.model.ema.decay == 0.5 and resumed.trainer.global_step == 2
    last = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert "max_steps: 2" in last[CONFIGURATION_KEY]


@pytest.mark.parametrize(
    ("monitor", "known"),
    [
        ("eval/shapes", True),
        ("eval_by_tag/shapes/two_object", True),
        ("eval_by_tag/nope/two_object", False),
        ("eval/nope", False),
        ("eval/held_out", False),
    ],
)
def test_a_checkpoint_that_waits_for_what_no_evaluation_logs_is_refused(monitor, known, tiny_folder, tmp_path):
    """Stage 1 trains on no reward, so there is no sum of those held out."""
    best = ["--callbacks.best=ModelCheckpoint", f"--callbacks.best.monitor={monitor}"]
    run = fit.parse(["--config", str(write_config(tmp_path, tiny_folder)), *best])
    if known:
        check_monitors(run.trainer, run.model)
    else:
        with pytest.raises(UserError, match=f"{monitor}.* logs eval/shapes, "):
            check_monitors(run.trainer, run.model)


def test_so_is_one_in_a_run_without_an_evaluation(tiny_folder, tmp_path):
    cold_start = save_cold_start(tiny_folder, tmp_path / "cold_start")
    config = str(write_rtdmd_config(tmp_path, tiny_folder, cold_start))
    best = ["--callbacks.best=ModelCheckpoint", "--callbacks.best.monitor=eval/held_out"]
    run = fit.parse(["--config", config, *best])
    with pytest.raises(UserError, match="eval/held_out"):
        check_monitors(run.trainer, run.model)


@pytest.mark.slow
def test_a_run_whose_checkpoint_waits_for_what_nothing_logs_ends_when_it_is_first_asked(tiny_folder, tmp_path):
    config = ["--config", str(write_config(tmp_path, tiny_folder)), "--trainer.max_steps=4", "--callbacks.last=null"]
    best = ["--callbacks.best=ModelCheckpoint", "--callbacks.best.every_n_train_steps=2"]
    with pytest.raises(UserError, match=r"monitor nope, which nothing has logged by update 2; logged are .*weight/gen"):
        fit.main([*config, *best, "--callbacks.best.monitor=nope"])
    logged = fit.main(
        [*config, *best, "--callbacks.best.monitor=weight/generator/matching", f"--run_dir={tmp_path}/other"]
    )
    assert logged.trainer.global_step == 4


@pytest.mark.parametrize(
    ("option", "in_config"),
    [
        ("trainer.default_root_dir", {"default_root_dir": "x"}),
        ("trainer.logger.save_dir", None),
        (
            "trainer.logger.init_args.save_dir",
            {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}},
        ),
    ],
)
def test_another_folder_for_a_part_of_the_run_is_refused(option, in_config, tiny_folder, tmp_path):
    config = ["--config", str(write_config(tmp_path, tiny_folder))]
    with pytest.raises(UserError, match=rf"^{option} .*--run_dir"):
        fit.parse([*config, f"--{option}=x"])
    if in_config is not None:
        (tmp_path / "other.yaml").write_text(json.dumps({"trainer": in_config}))
        with pytest.raises(UserError, match=rf"^{option} .*--run_dir"):
            fit.parse([*config, "--config", str(tmp_path / "other.yaml")])


def test_a_file_system_without_locks_is_told_and_another_error_is_not_hidden(tmp_path, monkeypatch):
    def fail(number, *_):
        raise OSError(number, "of the file system")

    monkeypatch.setattr(run_folder.fcntl, "flock", partial(fail, errno.ENOLCK))
    with pytest.warns(UserWarning, match=f"{tmp_path} knows no locks"), run_folder.locked(tmp_path):
        pass
    monkeypatch.setattr(run_folder.fcntl, "flock", partial(fail, errno.EIO))
    with pytest.raises(OSError, match="of the file system"), run_folder.locked(tmp_path):
        pass
