"""Bad input is refused at start in one sentence; every shipped YAML parses and builds."""

from pathlib import Path

import pytest
import yaml

from rtdmd_lightning import fit
from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError
from tests.support.runs import refused
from tests.support.tiny import REPOSITORY, run, write_config

SHIPPED = sorted(
    path
    for stage in ("cold_start", "rtdmd", "baselines")
    for path in (REPOSITORY / "configs" / stage).glob("*.yaml")
    if path.name != "defaults.yaml"
)


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--model.no_such_key=1", "no_such_key"),
        ("--model.consistency.transition=other", "other"),
        ("--data.prompts=/nowhere/prompts.txt", "/nowhere/prompts.txt"),
        ("--data.prompts=shapes:tset", "shapes:tset"),
        ("--model.backbone.resolution=30", "resolution 30"),
        ("--model.backbone.pretrained=/nowhere", "/nowhere"),
        ("--model.guidance_scale=[5,2]", "guidance_scale"),
        ("--model.sampler.steps=[250,1000]", "model.sampler.steps"),
        ("--model.initial_adapter=/nowhere.pt", "/nowhere.pt"),
        ("--ckpt_path=/nowhere.ckpt", "/nowhere.ckpt"),
        ("--ckpt_path=", "--ckpt_path wants a checkpoint"),
        ("--model.batch=3", "'batch'"),
        ("--seed_every=3", "seed_every"),
        ("--config=.", "is a folder"),
        ("--config=/nowhere.yaml", "/nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(tiny_folder, tmp_path, capsys, option, wanted):
    assert wanted in refused(capsys, "--config", str(write_config(tmp_path, tiny_folder)), option)


def test_empty_prompt_file(tiny_folder, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    config = str(write_config(tmp_path, tiny_folder))
    assert "is empty" in refused(capsys, "--config", config, f"--data.prompts={empty}")


def test_adapter_without_a_matching_key(tiny_folder, tmp_path, capsys):
    import torch

    halves = {"A": torch.zeros(4, 8), "B": torch.zeros(8, 4)}
    state = {f"other.lora_{half}.default.weight": matrix for half, matrix in halves.items()}
    torch.save(state, tmp_path / "other.pt")
    config = str(write_config(tmp_path, tiny_folder))
    sentence = refused(capsys, "--config", config, f"--model.initial_adapter={tmp_path / 'other.pt'}")
    assert "has no key that matches" in sentence


def test_unknown_key_in_a_file(tiny_folder, tmp_path, capsys):
    config = write_config(tmp_path, tiny_folder)
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"modle": {"batch_size": 3}}))
    assert "modle" in refused(capsys, "--config", str(config))


@pytest.mark.slow
def test_the_real_command_prints_no_traceback_unless_asked(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    finished = run("--config", config, "--model.batch_sise=3", check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr and "batch_sise" in finished.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_every_shipped_config_parses_and_builds(path: Path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    prompts = compose(path)["data"]["prompts"]
    arguments = [f"--config={path}"]
    if not prompts.startswith("shapes:"):  # the large sets' prompt files are the user's
        arguments += ["--data.prompts=shapes:train"]
    cli = fit.parse([*arguments, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    assert isinstance(cli.model, FewStepModule) and isinstance(cli.datamodule, RolloutDataModule)
    assert cli.datamodule.batch_size == cli.model.batch_size
    assert cli.datamodule.batches_per_step == cli.model.batches_per_step


def test_trainer_options_that_contradict_one_another_are_told_in_a_sentence(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    bar = "--callbacks.progress=lightning.pytorch.callbacks.RichProgressBar"
    with pytest.raises(UserError, match="enable_progress_bar"):
        fit.main(["--config", config, "--trainer.enable_progress_bar=false", bar])


def test_overrides_on_the_command_line_come_last(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    cli = fit.parse(["--config", config, "--model.sub_interval=false", "--seed_everything=7"])
    assert cli.model.matching.sub_interval is False and cli.model.matching.consistency.weight == 0.01
    assert cli.model.seed == cli.datamodule.seed == 7
