"""What commands share: a function as a command, and where tables are printed."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console


def wide_console(width: int = 120) -> Console:
    """A console for tables: as wide as the terminal, and where there is none, e.g. in a log file, at least so wide."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


def command_parser() -> ArgumentParser:
    """A parser that raises what it refuses, and wants options by their whole names: a prefix may mean another one tomorrow.

    It prints no help: that of a command is `cli.print_help_of`.
    """
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)


def run_command(function: Callable[..., Any], arguments: list[str]) -> Any:
    """Call a function with what a command line says: its parameters are the options. Call it inside `readable_errors`.

    Not jsonargparse's `auto_cli`: that drops a parameter named `config`.
    """
    parser = command_parser()
    parser.add_function_arguments(function)
    return function(**parser.instantiate(parser.parse_args(arguments)))
