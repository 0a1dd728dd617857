"""Print the script with which a shell completes commands, their options and config files. For bash:

    rtdmd completion bash > ~/.local/share/bash-completion/completions/rtdmd

and for zsh, into a folder of its `fpath`: `rtdmd completion zsh > ~/.zfunc/_rtdmd`. The script is fixed text, so that no Python
runs at a TAB; print it again after an update.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("completion")

import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from textwrap import shorten
from typing import Literal, get_args, get_origin

import shtab

from rtdmd_lightning.cli import COMMANDS, MORE_OPTIONS, OPTIONS, POSITIONAL
from rtdmd_lightning.fitting.help import LINKED, MODULES
from rtdmd_lightning.fitting.options import RUN
from rtdmd_lightning.fitting.refusals import PARTS, type_of
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.signatures import Option, signature

OF_A_CONFIG = ("fit", "plan", "evaluate")
BACKBONES = tuple(f"rtdmd_lightning.models.{name}Backbone" for name in ("SD3", "Flux", "Flux2"))
OF_THE_PARSER = ("--seed_everything", "--print_config", "--trainer.help")
LINKED_NAMES = tuple(f"data.{name}" for name in LINKED)


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print the script.

    Args:
        shell: that reads it.
    """
    print(shtab.complete(commands(), shell))


def commands() -> ArgumentParser:
    """Commands and options as argparse has them: to be described, not to parse."""
    whole = ArgumentParser("rtdmd")
    named = whole.add_subparsers()
    for name, meaning in COMMANDS.items():
        parser = named.add_parser(name, help=meaning)
        if name in OF_A_CONFIG:
            config = parser.add_argument("--config", help="a YAML file")
            config.complete = shtab.glob("*.yaml")  # type: ignore[attr-defined]
        if name in OPTIONS:
            _add_ways(parser, OPTIONS[name])
        else:
            _add(parser, options_of_a_run())
            for option in OF_THE_PARSER:
                parser.add_argument(option)
        for option in (written.partition(" ")[0] for written in MORE_OPTIONS.get(name, {})):
            if option.islower() and option != "--config":  # without a NAME in it
                parser.add_argument(option)
    return whole


def _add_ways(parser: ArgumentParser, ways: Mapping[str, str]) -> None:
    """A command's options, whichever way it is called; or its own commands, as in `rtdmd hub push`."""
    options: dict[str, Option] = {}
    inner = parser.add_subparsers() if any(way.isalpha() for way in ways) else None
    for way, path in ways.items():
        of_way = options_at(f"rtdmd_lightning.{path}")
        if inner is not None:
            _add(inner.add_parser(way, help=way), of_way)  # shtab leaves out what has no help
        else:
            options |= of_way
    _add(parser, options)
    for flag in ways:
        if flag.startswith("--") and " " not in flag and flag.removeprefix("--") not in options:
            parser.add_argument(flag, action="store_true")


def options_of_a_run() -> dict[str, Option]:
    """By their whole names: those of the run, of the shipped modules and families, of the data and of Lightning's trainer."""
    found = options_at(RUN)
    for path in MODULES.values():
        found |= options_at(path, "model.")
    for path in BACKBONES:
        found |= options_at(path, "model.backbone.")
    for part, path in PARTS.items():
        found |= options_at(path, f"{part}.")
    return {name: option for name, option in found.items() if name not in LINKED_NAMES}


def options_at(path: str, prefix: str = "") -> dict[str, Option]:
    """The options of a class or a function, and of the settings that it takes, by their whole names."""
    known = signature(path)
    found: dict[str, Option] = {}
    for name, option in known.options.items() if known else ():
        found |= {f"{prefix}{name}": option} | options_at(option.of_class or "", f"{prefix}{name}.")
    return found


def _add(parser: ArgumentParser, options: Mapping[str, Option]) -> None:
    for name, option in options.items():
        described = {"choices": _choices(option), "help": shorten(option.meaning, 70).replace("%", "%%")}
        if name in POSITIONAL:
            parser.add_argument(name, nargs=None if option.default is None else "*", **described)  # type: ignore[arg-type]
        else:
            parser.add_argument(f"--{name}", **described)  # type: ignore[arg-type]


def _choices(option: Option) -> list[str] | None:
    """The values that it takes, if they are few."""
    kind = type_of(option)
    if kind is bool:
        return ["true", "false"]
    kinds = [kind, *get_args(kind)]
    return next((list(map(str, get_args(one))) for one in kinds if get_origin(one) is Literal), None)


def main(arguments: list[str]) -> None:
    parser = command_parser()
    parser.add_function_arguments(completion, as_positional=True)
    completion(**parser.parse_args(arguments).as_dict())


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
