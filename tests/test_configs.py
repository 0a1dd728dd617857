"""How the shipped configs are put together: of what parts, and what is put after one."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy

from rtdmd_lightning import fit
from rtdmd_lightning.modules.preflight import check_trainer
from rtdmd_lightning.modules.strategies import DDP, FSDP2
from rtdmd_lightning.utils.configuration import compose
from tests.support.tiny import REPOSITORY

CONFIGS = REPOSITORY / "configs"
MODELS = ["sd3m", "sd35m", "flux1_dev", "flux2_klein_4b", "flux2_klein_9b"]
ANYWHERE = ["--data.prompts=shapes:train", "--trainer.accelerator=cpu"]
RUNS = [f"{stage}/{model}" for stage in ("cold_start", "rtdmd") for model in MODELS]


def parents(path: Path) -> list[Path]:
    """A file's defaults and their own."""
    own = [(path.parent / name).resolve() for name in yaml.safe_load(path.read_text()).get("defaults", [])]
    return [each for parent in own for each in (parent, *parents(parent))]


def trainer_of(run: str, *arguments: str):
    """Of a real model's config, with the parts and options after it, on a CPU's processes."""
    cli = fit.parse([f"--config={CONFIGS / run}.yaml", *ANYWHERE, *arguments])
    check_trainer(cli.trainer, cli.config["trainer"]["precision"])
    return cli.trainer


@pytest.mark.parametrize("folder", ["cold_start", "rtdmd", "evaluate", "parts"])
@pytest.mark.parametrize("model", MODELS)
def test_no_models_file_is_made_from_another_models(folder, model):
    of_models = [
        parent for parent in parents(CONFIGS / folder / f"{model}.yaml") if parent.stem in (*MODELS, "tiny_sd3")
    ]
    assert {parent.stem for parent in of_models} <= {model}


@pytest.mark.parametrize("run", RUNS)
def test_one_gpu_takes_the_place_of_every_configs_machines(run):
    trainer = trainer_of(run, f"--config={CONFIGS / 'parts/one_gpu.yaml'}")
    assert (trainer.world_size, trainer.num_nodes) == (1, 1) and isinstance(trainer.strategy, SingleDeviceStrategy)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("card", [12, 16, 24])
def test_a_cards_recipe_keeps_every_configs_batch_on_one_card(card, run):
    config = CONFIGS / f"{run}.yaml"
    cli = fit.parse([f"--config={config}", f"--config={CONFIGS / f'parts/card_{card}gb.yaml'}", *ANYWHERE])
    module, backbone = cli.model, cli.model.backbone
    assert cli.trainer.world_size == 1 and isinstance(cli.trainer.strategy, SingleDeviceStrategy)
    assert module.batch_size == compose(config)["model"]["init_args"]["batch_size"] and module.micro_batch_size == 1
    assert backbone.gradient_checkpointing and backbone.vae_gradient_checkpointing and not backbone.text_encoders
    assert set(module.memory.offload) == {"text_encoders", "vae", "rewards", *([] if card == 24 else ["base"])}
    assert (backbone.quantization, backbone.embeddings_on_device) == ("nf4", 0)
    assert not run.startswith("rtdmd") or module.rewards.dtype == "float16"


@pytest.mark.parametrize("run", RUNS)
def test_whole_transformers_are_one_config_more_in_both_stages(run):
    parts = [f"--config={CONFIGS / 'parts' / part}.yaml" for part in ("fsdp2", "full")]
    cli = fit.parse([f"--config={CONFIGS / run}.yaml", *parts, *ANYWHERE])
    assert cli.model.trainable == "full" and cli.model.backbone.dtype == torch.float32
    assert cli.config["trainer"]["precision"] == "bf16-mixed"
    assert {settings.learning_rate for settings in cli.model.optimize.settings.values()} == {5e-7}


@pytest.mark.parametrize("run", RUNS)
def test_fsdp2_is_one_config_more_and_on_several_nodes_one_number(run):
    nodes = compose(CONFIGS / f"{run}.yaml")["trainer"].get("num_nodes", 1)
    for size in (f"replicate_size={nodes}", f"shard_size={8 * nodes}"):
        trainer = trainer_of(run, f"--config={CONFIGS / 'parts/fsdp2.yaml'}", f"--trainer.strategy.{size}")
        assert isinstance(trainer.strategy, FSDP2) and trainer.world_size == 8 * nodes
        assert not trainer.strategy._save_distributed_checkpoint


@pytest.mark.parametrize("part", [None, "fsdp2"])
def test_the_time_out_of_collectives_is_an_option_of_every_run_on_several_processes(part):
    after = [] if part is None else [f"--config={CONFIGS / 'parts/fsdp2.yaml'}"]
    for options, wanted in (([], timedelta(hours=6)), (["--trainer.strategy.timeout=1:30:00"], timedelta(minutes=90))):
        strategy = trainer_of("cold_start/sd35m", *after, *options).strategy
        assert isinstance(strategy, DDP if part is None else FSDP2) and strategy._timeout == wanted
