"""A run's callbacks are a mapping: configs and the command line reach each by its name."""

import re

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks import ExportGenerator, RewardEvalCallback
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY, write_config, write_yaml


@pytest.fixture
def config(tiny_folder, tmp_path) -> str:
    """Its callbacks are evaluation, last and export."""
    return str(write_config(tmp_path, tiny_folder))


def callbacks(*arguments: str) -> dict:
    """By class; a run has one of each here."""
    return {type(callback): callback for callback in fit.parse([*arguments]).trainer.callbacks}


@pytest.mark.parametrize("option", ["every_n_updates", "init_args.every_n_updates"])
def test_an_option_reaches_the_callback_that_it_names(config, option):
    """Export has an option of this name too."""
    run = callbacks("--config", config, f"--callbacks.evaluation.{option}=5")
    assert run[RewardEvalCallback].every_n_updates == 5 and run[RewardEvalCallback].batch_size == 5
    assert run[ExportGenerator].every_n_updates is None
    assert run[ModelCheckpoint]._every_n_train_steps == 1


def test_a_second_config_changes_what_it_says_and_keeps_the_rest(config, tmp_path):
    """Whatever stands between the two, an option comes last."""
    change = {"evaluation": {"init_args": {"every_n_updates": 5}}, "export": None}
    second = str(write_yaml(tmp_path / "second", {"callbacks": change}))
    run = callbacks("--config", config, "--callbacks.evaluation.grid=3", "--config", second)
    evaluation = run[RewardEvalCallback]
    assert (evaluation.every_n_updates, evaluation.grid, evaluation.batch_size) == (5, 3, 5)
    assert ExportGenerator not in run and ModelCheckpoint in run


def test_null_leaves_one_out_and_an_empty_mapping_all(config):
    run = callbacks("--config", config, "--callbacks.export=null")
    assert ExportGenerator not in run and RewardEvalCallback in run and ModelCheckpoint in run
    run = callbacks("--config", config, "--callbacks={}")
    assert ExportGenerator not in run and RewardEvalCallback not in run


def test_a_name_of_ones_own_comes_last(config):
    own = ["--callbacks.rate=LearningRateMonitor", "--callbacks.rate.logging_interval=step"]
    run = callbacks("--config", config, *own)
    assert run[LearningRateMonitor].logging_interval == "step"
    order = [
        kind for kind in run if kind in (RewardEvalCallback, ExportGenerator, LearningRateMonitor, ModelCheckpoint)
    ]
    assert order == [RewardEvalCallback, ExportGenerator, LearningRateMonitor, ModelCheckpoint]


@pytest.mark.parametrize("option", ["--callbacks.alarm.stop=true", "--callbacks.evalaution.every_n_updates=5"])
def test_an_option_of_a_callback_that_the_run_does_not_have_is_refused(config, option):
    name = option.split(".")[1]
    with pytest.raises(
        UserError, match=rf"no callback '{name}' \(it has: evaluation, export, interruption, last, summary\)"
    ):
        fit.parse(["--config", config, option])


def test_options_without_a_class_in_a_config_are_refused(config, tmp_path):
    second = str(write_yaml(tmp_path / "second", {"callbacks": {"alarm": {"init_args": {"stop": True}}}}))
    with pytest.raises(UserError, match=r"callbacks\.alarm"):
        fit.parse(["--config", config, "--config", second])


def test_lightnings_own_list_is_refused(config):
    with pytest.raises(UserError, match=r"trainer\.callbacks"):
        fit.parse(["--config", config, "--trainer.callbacks+=LearningRateMonitor"])


@pytest.mark.slow
def test_a_runs_saved_config_makes_the_same_run_again(config, tmp_path):
    fit.main(["--config", config, "--trainer.max_steps=1", "--callbacks.export=null", "--callbacks.evaluation.grid=3"])
    saved = tmp_path / "runs/run/config.yaml"
    asked = ["--config", config, "--trainer.max_steps=1", "--callbacks.export=null", "--callbacks.evaluation.grid=3"]
    first, again = fit.parse(asked), fit.parse(["--config", str(saved)])
    for section in ("seed_everything", "trainer", "callbacks", "data", "model"):
        assert first.config[section] == again.config[section], section
    assert [type(callback) for callback in first.trainer.callbacks] == [
        type(callback) for callback in again.trainer.callbacks
    ]


def test_the_printed_config_has_every_callback(config, capsys):
    with pytest.raises(SystemExit):
        fit.parse(["--config", config, "--callbacks.evaluation.every_n_updates=5", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["callbacks"]
    assert [name for name, callback in printed.items() if callback is not None] == [
        "summary",
        "evaluation",
        "last",
        "export",
        "interruption",
    ]
    assert printed["evaluation"]["init_args"]["every_n_updates"] == 5


def test_a_bare_run_has_none(config):
    with fit.bare_run(config, ["--callbacks.evaluation.grid=3"], max_steps=1) as run:
        assert run.config["callbacks"] == {}


def test_the_readme_names_the_callbacks_that_every_run_starts_from():
    text = (REPOSITORY / "configs/README.md").read_text().split("## Callbacks")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert named == list(compose(REPOSITORY / "configs/parts/trainer.yaml")["callbacks"])
