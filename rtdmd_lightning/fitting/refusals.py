"""What the parser refuses, in this project's words: the option as it was typed, and what it takes, with an example."""

import ast
import inspect
import re
from typing import Any

import yaml
from lightning import Trainer

from rtdmd_lightning.fitting.options import DATA, did_you_mean
from rtdmd_lightning.utils.signatures import signature

OF_A_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)": (?P<wanted>.*?)(?:Given value type: \S+ \S+ )?(?:Got|Given) value: ?(?P<value>.*)'
)
A_MODEL = "model must be a class, for example --model=rtdmd_lightning.modules.ACDMDModule"
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def in_our_words(text: str, arguments: list[str]) -> str:
    """The parser's sentence with the whole name of the option, the nearest name, or a value that it would take.

    `arguments` are those of the command line, expanded (`expand_config_arguments`). What has no rule here stays as it is.
    """
    config = yaml.safe_load(arguments[0].removeprefix("--config=")) if arguments[0].startswith("--config=") else {}
    unknown = re.match(r"unrecognized arguments: (\S+)", text) or re.match(r"Option '([^']+)' is not accepted", text)
    if unknown:
        option = _as_typed(unknown[1].removeprefix("--"), arguments)
        name = option.removeprefix("--").partition("=")[0]
        of_trainer = list(inspect.signature(Trainer.__init__).parameters)[1:]
        nearest = (
            f"; {did_you_mean(name.split('.')[1], of_trainer, '--trainer.')}" if name.startswith("trainer.") else ""
        )
        return f"{option}: there is no such option{nearest}"
    wrong = OF_A_TYPE.match(text)
    if wrong and wrong["key"] == "model":
        return f"{wrong['value']}: {A_MODEL}"
    if wrong and (kinds := _kinds(wrong["wanted"])):
        option = _as_typed(wrong["key"], arguments)
        name = option.removeprefix("--").partition("=")[0]
        example = _example(name, config, wrong["value"])
        hint = f"; for example --{name}={example}" if example is not None else ""
        told = option if option.startswith("--") else f"the config's {name}: {wrong['value']}"
        return f"{told} must be {' or '.join(kinds)}{hint}"
    return text


def _kinds(wanted: str) -> list[str]:
    """`Expected a <class 'int'>` and the like, in words; nothing where a class is wanted that has no word."""
    choices = [choice.strip() for part in re.findall(r"Literal\[([^\]]*)\]", wanted) for choice in part.split(",")]
    found = list(dict.fromkeys(re.findall(r"<class '([\w.]+)'>", wanted)))
    return [*choices, *(KINDS[name] for name in found)] if all(name in KINDS for name in found) else []


def _as_typed(key: str, arguments: list[str]) -> str:
    """The argument whose name ends with what the parser calls it; else the key."""
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace(".init_args", "")
        ends = f".{name}".endswith(f".{key.partition('=')[0].replace('init_args.', '')}")
        if argument.startswith("--") and not argument.startswith("--config=") and ends:
            return argument
    return key


def _example(name: str, config: dict[str, Any], wrong: str) -> str | None:
    """What the config has there, unless that is what is wrong; else the default."""
    given: Any = config
    path = DATA
    for part in name.split("."):
        path = str(given.get("class_path", path)) if isinstance(given, dict) else path
        inner = given.get("init_args", given) if isinstance(given, dict) else {}
        given = inner.get(part) if isinstance(inner, dict) else None
        known = signature(path)
        option = known.options.get(part) if known else None
        path = option.of_class or "" if option else ""
    if given is None or str(given) == wrong.strip():
        try:
            given = ast.literal_eval(option.default) if option and option.default else None
        except ValueError:  # an object
            return None
    return None if given is None else yaml.safe_dump(given, default_flow_style=True).partition("\n")[0]
