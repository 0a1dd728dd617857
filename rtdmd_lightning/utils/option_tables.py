"""A help text's tables: a class's or a function's options, from its file (`utils/signatures.py`)."""

import ast
import re
from collections.abc import Mapping
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.utils.signatures import signature


def option_table(
    title: str,
    path: str,
    prefix: str = "",
    leave_out: tuple[str, ...] = (),
    given: Mapping[str, Any] | None = None,
    positional: Mapping[str, str] | None = None,
) -> Table:
    """The options of a class or a function: a line each with what it means, its default, and what the config gives it.

    Args:
        title: above the table.
        path: the import path of the class or function; it must be of this package.
        prefix: of the options' names, e.g. `model.`.
        leave_out: options that are not listed.
        given: what the config has, by option.
        positional: those that are given without a name, and how they are shown.
    """
    table = titled(title)
    known = signature(path)
    assert known is not None
    for option in known.options.values():
        if option.name in leave_out:
            continue
        default = "required" if option.default is None else _default(option.default)
        told = f"({default}; here: {_short(given[option.name])})" if given and option.name in given else f"({default})"
        shown = (positional or {}).get(option.name, f"--{prefix}{option.name}")
        table.add_row(
            Text(f"  {shown}", style="cyan"),
            Text.assemble(f"{option.meaning} " if option.meaning else "", (told, "dim")),
        )
    return table


def _short(value: Any) -> str:
    """A value of a config; of an object, its class."""
    if isinstance(value, dict):
        return str(value["class_path"]).rpartition(".")[2] if "class_path" in value else "see below"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).partition("\n")[0]
    return text if len(text) <= 60 else "a list"


def _default(written: str) -> str:
    """A default as one would type it. One that is an object has no such form: its own options are listed elsewhere."""
    path = re.fullmatch(r"Path\((.*)\)", written)
    try:
        value = ast.literal_eval(path[1] if path else written)
    except ValueError:
        return "optional"
    if isinstance(value, str):
        return f"default: {value}"
    return f"default: {_short(list(value) if isinstance(value, tuple) else value)}"


def plain_table(title: str, rows: Mapping[str, str]) -> Table:
    """Names and what they mean, below a title."""
    table = titled(title)
    for name, meaning in rows.items():
        table.add_row(Text(f"  {name}", style="cyan"), meaning)
    return table


def titled(title: str) -> Table:
    """Two columns below a title: names, and what they mean."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    table.add_column(min_width=32, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    return table
