"""What commands share: a function as a command, and where tables are printed."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console


def wide_console(width: int = 120) -> Console:
    """A console for tables, at least so wide: a log file has no width of its own."""
    console = Console()
    console.width = max(console.width, width)
    return console


def run_command(function: Callable[..., Any], program: str, arguments: list[str]) -> Any:
    """Call a function with what a command line says: its parameters are the options, its docstring is the help.

    Call it inside `readable_errors`.

    Not jsonargparse's `auto_cli`: that drops a parameter named `config`.
    """
    parser = ArgumentParser(prog=f"python -m {program}", description=function.__doc__, exit_on_error=False)
    parser.add_function_arguments(function)
    return function(**parser.instantiate(parser.parse_args(arguments)))
