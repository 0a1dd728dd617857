"""What a run tells its loggers beside numbers, and what these do to what they find in a run's folder.

One function a kind of logger. Curves go to all of them, through Lightning.
"""

import csv
import os
import re
from functools import singledispatch
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rtdmd_lightning.utils.curve_names import SUMMARY
from rtdmd_lightning.utils.pictures import Pictures

COMPARED = tuple(f"{SUMMARY}{name}" for name in ("held_out", "trained", "generator_loss"))
"""The columns of scores in TensorBoard's table of hyperparameters; a run may lack some."""
OF_A_RUN = re.compile(r"^(offline-)?run-\d+_\d+-")
"""How Weights & Biases calls the folder of a run, up to the run's id."""
RECIPE = ("seed_everything", "data", "model")
"""The parts of a configuration that its other columns have: it would show the trainer's 50 options first."""


@singledispatch
def log_pictures(logger: Logger, name: str, pictures: Pictures, step: int) -> None:
    """Show images with their captions. A logger that has no function here shows none: they are in the run's folder."""


@log_pictures.register
def _(logger: TensorBoardLogger, name: str, pictures: Pictures, step: int) -> None:
    """It knows no captions: one picture with them drawn in."""
    logger.experiment.add_image(name, np.asarray(pictures.grid), step, dataformats="HWC")


@log_pictures.register
def _(logger: WandbLogger, name: str, pictures: Pictures, step: int) -> None:
    logger.log_image(name, pictures.separate, step, caption=pictures.captions)


@singledispatch
def log_warning(logger: Logger, name: str, text: str, step: int) -> None:
    """Show a sentence that nobody should miss. A logger that has no function here does not: the console has it."""


@log_warning.register
def _(logger: TensorBoardLogger, name: str, text: str, step: int) -> None:
    logger.experiment.add_text(name, text, step)


@log_warning.register
def _(logger: WandbLogger, name: str, text: str, step: int) -> None:
    """It can send it by mail or Slack."""
    logger.experiment.alert(title=name, text=text)


@singledispatch
def log_configuration(logger: Logger, text: str) -> None:
    """Tell a run's whole configuration, given as YAML: hyperparameters, wherever this logger keeps them."""
    logger.log_hyperparams(yaml.safe_load(text))


@log_configuration.register
def _(logger: TensorBoardLogger, text: str) -> None:
    """As text, and in the table by which runs are compared. (Lightning's own call would log a score of -1 there.)"""
    from torch.utils.tensorboard.summary import hparams

    logger.experiment.add_text("config", indent(text, "    "))  # Markdown's code
    recipe = {part: options for part, options in yaml.safe_load(text).items() if part in RECIPE}
    for summary in hparams(_flat(recipe), dict.fromkeys(COMPARED)):
        logger.experiment.file_writer.add_summary(summary)


def _flat(options: Any, name: str = "") -> dict[str, Any]:
    """`model.sampler.eta: 0.9`; lists, and null, as texts."""
    if isinstance(options, dict):
        parts = [_flat(value, f"{name}.{key}" if name else key) for key, value in options.items() if key != "init_args"]
        inner = _flat(options["init_args"], name) if options.get("init_args") else {}
        return {key: value for part in [*parts, inner] for key, value in part.items()}
    return {name: options if isinstance(options, bool | int | float | str) else str(options)}


@singledispatch
def go_on(logger: Logger) -> None:
    """Before a trainer starts: a run that is resumed goes on in the records that it has. The first process alone calls it."""


@go_on.register
def _(logger: CSVLogger) -> None:
    """It would delete the rows that it finds."""
    file = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
    if file.is_file():
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        logger.experiment.metrics = rows
        logger.save()


@go_on.register
def _(logger: WandbLogger) -> None:
    """It would open a second run. WANDB_RUN_ID, if it is set, decides."""
    latest = Path(logger.save_dir or ".") / "wandb/latest-run"
    if latest.exists():
        os.environ.setdefault("WANDB_RUN_ID", OF_A_RUN.sub("", latest.resolve().name))
