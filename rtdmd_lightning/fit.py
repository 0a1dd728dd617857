"""Train: `rtdmd fit --config configs/cold_start/tiny_sd3.yaml [--model.… --callbacks.… --trainer.…]`.

`--ckpt_path PATH` resumes, `--ckpt_path last` wherever this run was cut off (or begins it). `--help` lists the options, with a
config those of its classes too; `--trainer.help` lists Lightning's. `--print_config` prints the whole configuration.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("fit")

import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from rtdmd_lightning.fitting.options import check_folders, check_options, check_prompts
from rtdmd_lightning.utils.configuration import differences, split_arguments
from rtdmd_lightning.utils.errors import UserError, readable_errors

if TYPE_CHECKING:  # else imported late: a help text, or an option that there is not, need not wait for Lightning
    from rtdmd_lightning.fitting.command_line import FitCLI

# What libraries warn of and this project does on purpose; the first of these prints a page of code to copy.
EXPECTED_WARNINGS = (
    "Using ModelCheckpoint with manual optimization",  # the state after the update is the one to resume from
    "Already found a `peft_config` attribute",  # several adapters on one base
    "You have overridden `transfer_batch_to_device`",
    "Found .* in eval mode at the start of training",  # dropout stays off
    "Experiment logs directory .* exists and is not empty",  # `utils.loggers.go_on`
    "LightningCLI's args parameter is intended",  # they are sys.argv's, expanded
)


def check(arguments: list[str]) -> None:
    """Refuse what needs no Lightning to be known. Raises UserError."""
    config, options = split_arguments(arguments)
    check_options(config, options)
    check_prompts(config, options)
    check_folders(config, options)


def parse(arguments: list[str], cli: "type[FitCLI] | None" = None) -> "FitCLI":
    """Trainer, module and data as a command line describes them; nothing is loaded or trained yet."""
    check(arguments)
    from rtdmd_lightning.fitting.command_line import FitCLI, build

    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return build(arguments, cli or FitCLI)


@contextmanager
def bare_run(config: Path, options: list[str], max_steps: int) -> "Iterator[FitCLI]":
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


def tell_changes(checkpoint: Path, cli: "FitCLI") -> None:
    """Say once which options a run goes on with that are not those its checkpoint was made with."""
    from lightning.pytorch.utilities import rank_zero_info

    from rtdmd_lightning.fitting.command_line import CONFIGURATION_KEY
    from rtdmd_lightning.utils.checkpointing import read_checkpoint

    before = read_checkpoint(checkpoint).get(CONFIGURATION_KEY)
    if before is None:  # another trainer's than this command's
        return
    changed = differences(yaml.safe_load(before), yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)))
    told = [f"{name} {new} (was {old})" for name, (old, new) in changed.items() if name not in ("ckpt_path", "run_dir")]
    if told:
        rank_zero_info(f"{checkpoint} was saved with other options; the run goes on with {'; '.join(told)}")


def main(arguments: list[str]) -> "FitCLI":
    """Parse, build and fit; returns the finished CLI with its trainer and modules."""
    cli = parse(arguments)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from rtdmd_lightning.callbacks.monitors import check_monitors
    from rtdmd_lightning.fitting.closing import closing
    from rtdmd_lightning.modules.preflight import check_start
    from rtdmd_lightning.utils.loggers import go_on
    from rtdmd_lightning.utils.run_folder import locked, remove_partial, run_folder

    folder = run_folder(cli.trainer)
    checkpoint = check_start(cli.trainer, cli.model, cli.config["trainer"]["precision"], cli.config["ckpt_path"])
    check_monitors(cli.trainer, cli.model)
    if checkpoint is not None:
        tell_changes(checkpoint, cli)
    with locked(folder) if cli.trainer.is_global_zero else nullcontext():
        if cli.trainer.is_global_zero:
            remove_partial(folder)
            for logger in cli.trainer.loggers:
                go_on(logger)
        try:
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint)
        except MisconfigurationException as error:  # trainer options that contradict one another
            raise UserError(str(error)) from error
    if cli.trainer.is_global_zero:
        Console().print(closing(cli.trainer, cli.model), highlight=False, soft_wrap=True)
    return cli


def command(arguments: list[str]) -> None:
    """The command line: Lightning's help text, or the run."""
    if "--trainer.help" in arguments:
        from rtdmd_lightning.fitting.command_line import trainer_help

        print(trainer_help())
    else:
        check(arguments)
        from rtdmd_lightning.utils.processes import closing_process_group
        from rtdmd_lightning.utils.stopping import ending_at_once

        with closing_process_group(), ending_at_once():
            main(arguments)


if __name__ == "__main__":
    with readable_errors():
        command(sys.argv[1:])
