"""The help of a training run: this project's options, read from the files of its classes, in a tenth of a second."""

from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.fitting.options import RUN
from rtdmd_lightning.fitting.refusals import PARTS
from rtdmd_lightning.utils.configuration import EXAMPLE, split_arguments
from rtdmd_lightning.utils.option_tables import option_table, plain_table, titled
from rtdmd_lightning.utils.shipped import CONFIGS, shipped_folder
from rtdmd_lightning.utils.signatures import signature

# Of the data: they come from the model and from seed_everything.
LINKED = ("seed", "batch_size", "batches_per_step", "images_per_prompt")
STAGES = ("cold_start", "rtdmd", "baselines")
MODULES = {
    "stage 1": "rtdmd_lightning.modules.ACDMDModule",
    "stage 2": "rtdmd_lightning.modules.RTDMDModule",
    "a baseline": "rtdmd_lightning.modules.flow_grpo.FlowGRPOModule",
    "a baseline too": "rtdmd_lightning.modules.diffusion_nft.DiffusionNFTModule",
}
HELP = ("--help", "-h")
MORE = {
    "--config FILE --help": "the options of the model, the base and the callbacks of that config",
    "--config FILE --print_config": "the whole configuration",
    "--trainer.help": "Lightning's options: devices, precision, number of updates (max_steps), loggers",
}


def print_help(arguments: list[str], console: Console, command: str = "rtdmd fit") -> None:
    """With a `--config` among the arguments, the options of the classes that it names, too."""
    config, _ = split_arguments([argument for argument in arguments if argument not in HELP])
    console.print(Text(f"{command} --config FILE [--config FILE …] [--OPTION=VALUE …]", style="bold"))
    console.print(_configs())
    rows = [option_table("The run", RUN)]
    model = config.get("model")
    if config and isinstance(model, dict):
        rows += [*_of_object("model", model), option_table("The prompts", PARTS["data"], "data.", LINKED)]
        callbacks = config.get("callbacks") or {}
        for name, given in callbacks.items():
            rows += _of_object(f"callbacks.{name}", given) if isinstance(given, dict) else []
    else:
        rows += [_modules(), option_table("The prompts", PARTS["data"], "data.", LINKED)]
    console.print(Group(*rows, plain_table("More help", MORE)))


def _of_object(part: str, given: dict[str, Any]) -> list[Table]:
    """The options of an object and, below it, of the objects that it is given, as far as they are this package's."""
    path = str(given.get("class_path", ""))
    known = signature(path)
    if known is None:
        return []
    values = given.get("init_args") or {}
    tables = [option_table(f"{path}: {known.summary}", path, f"{part}.", given=values)] if known.options else []
    for name, option in known.options.items():
        value = values.get(name)
        inner = str(value.get("class_path", "")) if isinstance(value, dict) else ""
        inner = inner or option.of_class or ""
        if (deeper := signature(inner)) and deeper.options:
            of_inner = value.get("init_args", value) if isinstance(value, dict) else {}
            tables.append(option_table(deeper.summary, inner, f"{part}.{name}.", given=of_inner))
    return tables


def _modules() -> Table:
    table = titled("What is trained (model.class_path, in rtdmd_lightning)")
    for meaning, path in MODULES.items():
        known = signature(path)
        assert known is not None
        table.add_row(Text(f"  {path.removeprefix('rtdmd_lightning.')}", style="cyan"), f"{meaning}: {known.summary}")
    return table


def _configs() -> Table:
    """The shipped configs by stage, as the current folder would name them."""
    folder = Path(CONFIGS) if Path(CONFIGS).is_dir() else shipped_folder() / CONFIGS
    table = titled(f"Trains what a config describes, for example {EXAMPLE}")
    for stage in STAGES:
        names = sorted(file.stem for file in (folder / stage).glob("*.yaml") if file.stem != "defaults")
        table.add_row(Text(f"  {folder}/{stage}/", style="cyan"), ", ".join(names))
    return table
