"""Train: `python -m rtdmd_lightning.fit --config configs/cold_start/tiny_sd3.yaml [--model.… --callbacks.… --trainer.…]`.

`--ckpt_path PATH` resumes, `--ckpt_path last` wherever this run was cut off (or begins it). `--help` lists every option,
`--print_config` prints the whole configuration.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from rtdmd_lightning.callbacks.monitors import check_monitors
from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.modules.preflight import check_start
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS, read_checkpoint
from rtdmd_lightning.utils.configuration import differences, expand_config_arguments, refusals_of_libraries
from rtdmd_lightning.utils.errors import UserError, readable_errors, require
from rtdmd_lightning.utils.files import write_text
from rtdmd_lightning.utils.loggers import DELETES, keep_rows
from rtdmd_lightning.utils.processes import (
    MatmulPrecision,
    allow_cudnn_attention,
    closing_process_group,
    use_matmul_precision,
)
from rtdmd_lightning.utils.run_folder import locked, remove_partial, run_folder

CONFIGURATION_KEY = "configuration"  # in a checkpoint, as YAML

# What libraries warn of and this project does on purpose; the first of these prints a page of code to copy.
EXPECTED_WARNINGS = (
    "Using ModelCheckpoint with manual optimization",  # the state after the update is the one to resume from
    "Already found a `peft_config` attribute",  # several adapters on one base
    "You have overridden `transfer_batch_to_device`",
    "Found .* in eval mode at the start of training",  # dropout stays off
    DELETES,
    "LightningCLI's args parameter is intended",  # they are sys.argv's, expanded
)


class FitCLI(LightningCLI):
    """Lightning's command line with callbacks that have names, and what data and model share written once, under `model`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        wanted = "checkpoint to go on from; 'last': the run's own, if it has one yet"
        where = (
            "the folder of all that this run writes: checkpoints, evaluations, images, result, configuration, curves"
        )
        parser.add_argument("--run_dir", type=str, default="runs/run", help=where)
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("run_dir", "trainer.logger.init_args.save_dir")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=wanted)
        products = "of float32 matrix products on an accelerator: 'high' is TF32 where the device has it"
        parser.add_argument("--float32_matmul_precision", type=MatmulPrecision, default="high", help=products)
        attention = "let torch choose cuDNN's attention: faster on Hopper; with torch 2.11 it crashed FLUX.1-dev"
        parser.add_argument("--cudnn_attention", type=bool, default=False, help=attention)
        named = (
            "callbacks by name, called in this order; --callbacks.NAME=CLASS --callbacks.NAME.OPTION=VALUE; null: none"
        )
        parser.add_argument("--callbacks", type=dict[str, Callback | None], default={}, help=named)
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.batch_size", "data.batch_size", apply_on="instantiate")
        parser.link_arguments("model.batches_per_step", "data.batches_per_step", apply_on="instantiate")
        parser.link_arguments("model.images_per_prompt", "data.images_per_prompt", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        require(
            not self.config.trainer.callbacks,
            "trainer.callbacks is not used here: give each callback a name under callbacks, "
            "--callbacks.NAME=CLASS --callbacks.NAME.OPTION=VALUE",
        )

    def instantiate_trainer(self, **options: Any) -> Trainer:
        callbacks = [callback for callback in self.config_init.callbacks.values() if callback is not None]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # else the first logger would decide
                callback.dirpath = str(Path(self.config_init.run_dir) / CHECKPOINTS)
        trainer = super().instantiate_trainer(callbacks=callbacks, **options)
        use_matmul_precision(self.config_init.float32_matmul_precision, trainer.strategy.root_device)
        allow_cudnn_attention(self.config_init.cudnn_attention, trainer.strategy.root_device)
        return trainer


class SaveConfiguration(SaveConfigCallback):
    """Write the run's whole configuration to `RUN_DIR/config.yaml`, and into its checkpoints."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.text, folder / "config.yaml")

    @property
    def text(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIGURATION_KEY] = self.text


def parse(arguments: list[str], cli: type[FitCLI] = FitCLI) -> FitCLI:
    """Trainer, module and data as a command line describes them; nothing is loaded or trained yet."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    expanded = expand_config_arguments(arguments)
    check_callback_options(expanded)
    with refusals_of_libraries():
        return cli(
            FewStepModule,
            RolloutDataModule,
            subclass_mode_model=True,
            args=expanded,
            seed_everything_default=0,
            save_config_callback=SaveConfiguration,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            auto_configure_optimizers=False,
            run=False,
        )


def check_callback_options(arguments: list[str]) -> None:
    """Refuse options of a callback that has no class. The parser would look for them in Lightning's base class, which has none.

    `arguments` are those of a command line, expanded. Raises UserError.
    """
    known: set[str] = set()
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option == "--config" and isinstance(callbacks := yaml.safe_load(value).get("callbacks"), dict):
            for name, callback in callbacks.items():
                classless = isinstance(callback, dict) and "class_path" not in callback
                require(
                    not classless, f"the config has options of callbacks.{name}, but no class: give its class_path too"
                )
            known = {name for name, callback in callbacks.items() if callback is not None}
        elif option.startswith("--callbacks."):
            name, _, key = option.removeprefix("--callbacks.").partition(".")
            if key in ("", "class_path"):
                known.add(name)
            has = ", ".join(sorted(known)) or "none"
            hint = f"give its class first, --callbacks.{name}=CLASS"
            require(name in known, f"{option}: this run has no callback {name!r} (it has: {has}); {hint}")


@contextmanager
def bare_run(config: Path, options: list[str], max_steps: int) -> Iterator[FitCLI]:
    """A config's run of some steps, to be measured: without callbacks, logger and checkpoints, in a folder that goes with it.

    `options` are overrides as on the command line; what makes the run bare comes after them.
    """
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes the configuration of every run
        bare = ["logger=false", "enable_checkpointing=false", f"max_steps={max_steps}"]
        yield parse(
            [
                "--config",
                str(config),
                *options,
                f"--run_dir={folder}",
                "--callbacks={}",
                *(f"--trainer.{option}" for option in bare),
            ]
        )


def tell_changes(checkpoint: Path, cli: FitCLI) -> None:
    """Say once which options a run goes on with that are not those its checkpoint was made with."""
    before = read_checkpoint(checkpoint).get(CONFIGURATION_KEY)
    if before is None:  # another trainer's than this command's
        return
    changed = differences(yaml.safe_load(before), yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)))
    told = [f"{name} {new} (was {old})" for name, (old, new) in changed.items() if name not in ("ckpt_path", "run_dir")]
    if told:
        rank_zero_info(f"{checkpoint} was saved with other options; the run goes on with {'; '.join(told)}")


def main(arguments: list[str]) -> FitCLI:
    """Parse, build and fit; returns the finished CLI with its trainer and modules."""
    cli = parse(arguments)
    folder = run_folder(cli.trainer)
    checkpoint = check_start(cli.trainer, cli.model, cli.config["trainer"]["precision"], cli.config["ckpt_path"])
    check_monitors(cli.trainer, cli.model)
    if checkpoint is not None:
        tell_changes(checkpoint, cli)
    with locked(folder) if cli.trainer.is_global_zero else nullcontext():
        if cli.trainer.is_global_zero:
            remove_partial(folder)
            keep_rows(cli.trainer.loggers)
        try:
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint)
        except MisconfigurationException as error:  # trainer options that contradict one another
            raise UserError(str(error)) from error
    return cli


if __name__ == "__main__":
    with readable_errors(), closing_process_group():
        main(sys.argv[1:])
