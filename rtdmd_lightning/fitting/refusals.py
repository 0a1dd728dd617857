"""What names and values are refused for, in this project's words: what was given, what is wanted instead, and an example."""

import ast
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.signatures import Option

PARTS = {"data": "rtdmd_lightning.data.RolloutDataModule", "trainer": "lightning.pytorch.Trainer"}
"""The classes of those parts of a run whose class no config names."""

A_MODEL = "model must be a class, for example --model=rtdmd_lightning.modules.ACDMDModule"
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    types.NoneType: "null",
}
IN_ANNOTATIONS = {one.__name__: one for one in (int, float, bool, str, list, tuple, dict, Path, Mapping, Sequence)} | {
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
}
MOST_NAMES = 8  # that a message lists


def did_you_mean(
    name: str,
    known: list[str],
    prefix: str = "",
    listed_by: str = "rtdmd fit --config FILE --help",
    rest: str = "",
) -> str:
    """The nearest of the names, between what stood before and after it; without one all names, or the command that lists them."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}{rest}?"
    return f"there are {', '.join(known)}" if len(known) <= MOST_NAMES else f"`{listed_by}` lists what there is"


def check_value(told: str, option: Option, value: Any, *, typed: bool = False, example: Any = None) -> None:
    """Refuse a value that is not of the option's type, by jsonargparse's rules. Raises UserError.

    Where a class is part of the type, the value is left to the run's own parser, which imports the class.

    Args:
        told: the option with its value, as it was given.
        option: from its signature.
        value: as a config has it; text, if it is `typed`.
        example: one that would do; without one the default is told.
    """
    kind = type_of(option)
    if kind is None:
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        if typed:
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except ArgumentError as error:
        hint = "" if (good := _example(option, example)) is None else f"; for example {good}"
        raise UserError(f"{told} must be {_in_words(kind)}{hint}") from error


def type_of(option: Option) -> Any:
    """The type that an annotation means; None where there is a class in it, or where it says nothing."""
    names = {node.id for node in ast.walk(ast.parse(option.type, mode="eval")) if isinstance(node, ast.Name)}
    if not names <= IN_ANNOTATIONS.keys():
        return None
    kind = eval(option.type, IN_ANNOTATIONS.copy())  # this package's or Lightning's own text, and known names only
    return Optional[kind] if option.default == "None" else kind  # noqa: UP045 - `kind | None` is not for every kind


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, inner))
    if origin is tuple and ... not in inner:
        return f"a list of {len(inner)}"
    if kind in KINDS:
        return KINDS[kind]
    return "a mapping" if (origin or kind) in (dict, Mapping) else "a list"


def _example(option: Option, example: Any) -> str | None:
    """What the config has, or else the default, as one would write it."""
    if example is None and option.default is not None:
        try:
            example = ast.literal_eval(option.default)
        except ValueError:  # an object
            return None
    return None if example is None else yaml.safe_dump(example, default_flow_style=True).partition("\n")[0]


def in_our_words(text: str) -> str:
    """What a run's parser refuses; of a model that is no class it says more than anyone reads."""
    of_model = text.startswith('Parser key "model":') and "Problem with given class_path" not in text
    return A_MODEL if of_model else text
