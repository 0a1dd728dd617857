"""Train: `python -m rtdmd_lightning.fit --config configs/cold_start/tiny_sd3.yaml [--model.… --trainer.… --data.…]`.

`--ckpt_path PATH` resumes. `--help` lists every option, `--print_config` prints the whole configuration.
"""

import sys

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rtdmd_lightning.configuration import expand_config_arguments
from rtdmd_lightning.data import PromptDataModule
from rtdmd_lightning.errors import readable_errors
from rtdmd_lightning.modules.core import DistillationModule


class FitCLI(LightningCLI):
    """Lightning's command line with what data and model share written once, under `model`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.batch_size", "data.batch_size", apply_on="instantiate")
        parser.link_arguments("model.groups_per_step", "data.groups", apply_on="instantiate")


def main(arguments: list[str]) -> LightningCLI:
    """Parse, build and fit; returns the finished CLI with its trainer and modules."""
    return FitCLI(
        DistillationModule,
        PromptDataModule,
        subclass_mode_model=True,
        args=["fit", *expand_config_arguments(arguments)],
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"exit_on_error": False},
        auto_configure_optimizers=False,
    )


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
