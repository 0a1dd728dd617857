"""The help of a training run: this project's options, read from the files of its classes, in a tenth of a second."""

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.fitting.options import DATA
from rtdmd_lightning.utils.configuration import EXAMPLE, split_arguments
from rtdmd_lightning.utils.signatures import ROOT, signature

RUN = "rtdmd_lightning.fitting.options.RunOptions"
LINKED = (
    "seed",
    "batch_size",
    "batches_per_step",
    "images_per_prompt",
)  # of the data: from the model and seed_everything
STAGES = ("cold_start", "rtdmd", "baselines")
MODULES = {
    "stage 1": "rtdmd_lightning.modules.ACDMDModule",
    "stage 2": "rtdmd_lightning.modules.RTDMDModule",
    "a baseline": "rtdmd_lightning.modules.flow_grpo.FlowGRPOModule",
    "a baseline too": "rtdmd_lightning.modules.diffusion_nft.DiffusionNFTModule",
}
HELP = ("--help", "-h")


def print_help(arguments: list[str], console: Console) -> None:
    """With a `--config` among the arguments, the options of the classes that it names, too."""
    config, _ = split_arguments([argument for argument in arguments if argument not in HELP])
    console.print(Text("rtdmd fit --config FILE [--config FILE …] [--OPTION=VALUE …]", style="bold"))
    console.print(_configs())
    rows = [_options("The run", RUN, "")]
    model = config.get("model")
    if config and isinstance(model, dict):
        rows += [*_of_object("model", model), _options("The prompts", DATA, "data.", LINKED)]
        callbacks = config.get("callbacks") or {}
        for name, given in callbacks.items():
            rows += _of_object(f"callbacks.{name}", given) if isinstance(given, dict) else []
    else:
        rows += [_modules(), _options("The prompts", DATA, "data.", LINKED)]
    console.print(Group(*rows, _more()))


def _of_object(part: str, given: dict[str, Any]) -> list[Table]:
    """The options of an object and, below it, of the objects that it is given, as far as they are this package's."""
    path = str(given.get("class_path", ""))
    known = signature(path)
    if known is None:
        return []
    values = given.get("init_args") or {}
    tables = [_options(f"{path}: {known.summary}", path, f"{part}.", given=values)] if known.options else []
    for name, option in known.options.items():
        value = values.get(name)
        inner = str(value.get("class_path", "")) if isinstance(value, dict) else ""
        inner = inner or option.of_class or ""
        if (deeper := signature(inner)) and deeper.options:
            of_inner = value.get("init_args", value) if isinstance(value, dict) else {}
            tables.append(_options(deeper.summary, inner, f"{part}.{name}.", given=of_inner))
    return tables


def _options(
    title: str, path: str, prefix: str, leave_out: tuple[str, ...] = (), given: dict[str, Any] | None = None
) -> Table:
    """A class's options: a line each with what it means, its default, and what the config gives it."""
    table = _table(title)
    known = signature(path)
    assert known is not None
    for option in known.options.values():
        if option.name in leave_out:
            continue
        default = "required" if option.default is None else f"default: {_plain(option.default)}"
        told = f"({default}; here: {_short(given[option.name])})" if given and option.name in given else f"({default})"
        name = Text(f"  --{prefix}{option.name}", style="cyan")
        table.add_row(name, Text.assemble(f"{option.meaning} " if option.meaning else "", (told, "dim")))
    return table


def _short(value: Any) -> str:
    """A value of a config; of an object, its class."""
    if isinstance(value, dict):
        return str(value["class_path"]).rpartition(".")[2] if "class_path" in value else "see below"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).partition("\n")[0]
    return text if len(text) <= 60 else "a list"


def _plain(default: str) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(default, default.strip("'"))


def _modules() -> Table:
    table = _table("What is trained (model.class_path, in rtdmd_lightning)")
    for meaning, path in MODULES.items():
        known = signature(path)
        assert known is not None
        table.add_row(Text(f"  {path.removeprefix('rtdmd_lightning.')}", style="cyan"), f"{meaning}: {known.summary}")
    return table


def _configs() -> Table:
    """The shipped configs by stage, as the current folder would name them."""
    folder = Path("configs") if Path("configs").is_dir() else ROOT / "configs"
    table = _table(f"Trains what a config describes, for example {EXAMPLE}")
    for stage in STAGES:
        names = sorted(file.stem for file in (folder / stage).glob("*.yaml") if file.stem != "defaults")
        table.add_row(Text(f"  {folder}/{stage}/", style="cyan"), ", ".join(names))
    return table


def _more() -> Table:
    table = _table("More help")
    for option, meaning in {
        "--config FILE --help": "the options of the model, the base and the callbacks of that config",
        "--config FILE --print_config": "the whole configuration",
        "--trainer.help": "Lightning's options: devices, precision, number of updates (max_steps), loggers",
    }.items():
        table.add_row(Text(f"  {option}", style="cyan"), meaning)
    return table


def _table(title: str) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    table.add_column(min_width=32, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    return table
