"""Train: `python -m rtdmd_lightning.fit --config configs/cold_start/tiny_sd3.yaml [--model.… --trainer.… --data.…]`.

`--ckpt_path PATH` resumes. `--help` lists every option, `--print_config` prints the whole configuration.
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy

from rtdmd_lightning.configuration import expand_config_arguments
from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.errors import UserError, readable_errors
from rtdmd_lightning.modules.core import DistillationModule
from rtdmd_lightning.modules.roles import SHARDED_KEY

# What libraries warn of and this project does on purpose; the first of these prints a page of code to copy.
MEANT_SO = (
    "Using ModelCheckpoint with manual optimization",  # the state after the update is the one to resume from
    "Already found a `peft_config` attribute",  # several adapters on one base
    "You have overridden `transfer_batch_to_device`",
    "Found .* in eval mode at the start of training",  # dropout stays off
    "LightningCLI's args parameter is intended",  # they are sys.argv's, expanded
)


class FitCLI(LightningCLI):
    """Lightning's command line with what data and model share written once, under `model`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to resume from")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.batch_size", "data.batch_size", apply_on="instantiate")
        parser.link_arguments("model.groups_per_step", "data.groups", apply_on="instantiate")
        parser.link_arguments("model.images_per_prompt", "data.images_per_prompt", apply_on="instantiate")


def parse(arguments: list[str], cli: type[FitCLI] = FitCLI) -> FitCLI:
    """Trainer, module and data as a command line describes them; nothing is loaded or trained yet."""
    for message in MEANT_SO:
        warnings.filterwarnings("ignore", message=message)
    return cli(
        DistillationModule,
        RolloutDataModule,
        subclass_mode_model=True,
        args=expand_config_arguments(arguments),
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"exit_on_error": False},
        auto_configure_optimizers=False,
        run=False,
    )


def log_folder(trainer: Trainer) -> Path:
    """Where a run writes. Raises UserError for a run without a logger, which has no such place."""
    if trainer.log_dir is None:
        raise UserError("the run writes nowhere: set trainer.logger")
    return Path(trainer.log_dir)


def check_resumable(checkpoint: Path, trainer: Trainer) -> None:
    """Refuse what cannot be resumed, before anything is loaded.

    Lightning restores an unsharded checkpoint's second optimizer wrongly under FSDP2: the fake score's momentum is lost.
    """
    if not checkpoint.exists():
        raise UserError(f"ckpt_path {checkpoint} does not exist")
    if checkpoint.is_dir() or not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    if not torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)[SHARDED_KEY]:
        raise UserError(
            f"{checkpoint} was saved without FSDP2 and cannot be resumed under ModelParallelStrategy (the fake score's "
            "optimizer state would be lost); resume it with the strategy that it was saved with"
        )


def main(arguments: list[str], *, resume: bool = False) -> FitCLI:
    """Parse, build and fit; returns the finished CLI with its trainer and modules.

    With `resume`, a run whose log folder holds a `last.ckpt` goes on from it; one without starts afresh.
    """
    try:
        cli = parse(arguments)
        ckpt_path = cli.config["ckpt_path"]
        if resume and ckpt_path is None:
            last = log_folder(cli.trainer) / "checkpoints" / "last.ckpt"
            ckpt_path = str(last) if last.is_file() else None
        if ckpt_path is not None:
            check_resumable(Path(ckpt_path), cli.trainer)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=ckpt_path)
    except MisconfigurationException as error:  # trainer options that contradict one another
        raise UserError(str(error)) from error
    return cli


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
