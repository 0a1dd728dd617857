"""Lightning's command line with callbacks that have names, and what its parser refuses in this project's words."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from rtdmd_lightning.callbacks.monitors import MonitorsAreLogged
from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.fitting.options import RunOptions
from rtdmd_lightning.fitting.refusals import in_our_words
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS
from rtdmd_lightning.utils.configuration import expand_config_arguments, refusals_of_libraries
from rtdmd_lightning.utils.errors import UserError, require, user_error_in
from rtdmd_lightning.utils.files import write_text
from rtdmd_lightning.utils.loggers import log_configuration
from rtdmd_lightning.utils.processes import allow_cudnn_attention, use_matmul_precision
from rtdmd_lightning.utils.run_folder import run_folder

CONFIGURATION_KEY = "configuration"  # in a checkpoint, as YAML


class FitCLI(LightningCLI):
    """Lightning's command line with callbacks that have names, and what data and model share written once, under `model`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions)
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("run_dir", "trainer.logger.init_args.save_dir")
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
        trainer = super().instantiate_trainer(callbacks=[*callbacks, MonitorsAreLogged()], **options)
        use_matmul_precision(self.config_init.float32_matmul_precision, trainer.strategy.root_device)
        allow_cudnn_attention(self.config_init.cudnn_attention, trainer.strategy.root_device)
        return trainer


class SaveConfiguration(SaveConfigCallback):
    """Write the run's whole configuration to `RUN_DIR/config.yaml`, and into its loggers and checkpoints."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.text, folder / "config.yaml")
        for logger in trainer.loggers:
            log_configuration(logger, self.text)

    @property
    def text(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIGURATION_KEY] = self.text


def build(arguments: list[str], cli: type[FitCLI] = FitCLI) -> FitCLI:
    """Trainer, module and data as a command line describes them. Raises UserError for what the parser refuses."""
    expanded = expand_config_arguments(arguments)
    try:
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
    except Exception as error:
        told = user_error_in(error)
        if isinstance(told, ArgumentError):
            raise UserError(in_our_words(" ".join(str(told).split()))) from error
        raise


def trainer_help() -> str:
    """Lightning's own options."""
    parser = LightningArgumentParser(prog="rtdmd fit --config FILE", usage="%(prog)s --trainer.OPTION=VALUE …")
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser.format_help()
