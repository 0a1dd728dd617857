"""A help text's tables: a class's or a function's options, from its file (`utils/signatures.py`)."""

from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.utils.signatures import signature


def option_table(
    title: str, path: str, prefix: str, leave_out: tuple[str, ...] = (), given: dict[str, Any] | None = None
) -> Table:
    """A class's options: a line each with what it means, its default, and what the config gives it."""
    table = titled(title)
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
    return {"None": "null", "True": "true", "False": "false"}.get(
        default, default.removeprefix("Path(").removesuffix(")").strip("'")
    )


def titled(title: str) -> Table:
    """Two columns below a title: names, and what they mean."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    table.add_column(min_width=32, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    return table
