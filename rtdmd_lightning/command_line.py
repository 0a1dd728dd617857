"""A function as a command: its parameters are the options, its docstring is the help."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser


def run_command(function: Callable[..., Any], program: str, arguments: list[str]) -> Any:
    """Call a function with what a command line says; call it inside `readable_errors`.

    Not jsonargparse's `auto_cli`: that drops a parameter named `config`.
    """
    parser = ArgumentParser(prog=f"python -m {program}", description=function.__doc__, exit_on_error=False)
    parser.add_function_arguments(function)
    return function(**parser.instantiate(parser.parse_args(arguments)))
