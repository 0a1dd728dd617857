"""What a run's command line is refused for before Lightning is imported, which takes seconds: names that nothing has, and values
of the wrong type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rtdmd_lightning.data.prompt_files import read_prompt_file
from rtdmd_lightning.fitting.refusals import PARTS, check_value, did_you_mean
from rtdmd_lightning.utils.configuration import EXAMPLE
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.signatures import signature


@dataclass(frozen=True)
class RunOptions:
    """Options of the run itself.

    Args:
        run_dir: the folder of all that this run writes: checkpoints, evaluations, images, result, configuration, curves.
        ckpt_path: the checkpoint to go on from; `last` is the run's own, if it has one yet.
        float32_matmul_precision: of float32 matrix products on an accelerator; `high` is TF32 where the device has it.
        cudnn_attention: let torch choose cuDNN's attention, which is faster on Hopper; with torch 2.11 it crashed FLUX.1-dev.
    """

    run_dir: str = "runs/run"
    ckpt_path: str | None = None
    float32_matmul_precision: Literal["highest", "high", "medium"] = "high"
    cudnn_attention: bool = False


RUN = f"{__name__}.RunOptions"
OF_THE_PARSER = ("config", "print_config", "help", "seed_everything", "trainer", "model", "data", "callbacks")
NAMES = (*OF_THE_PARSER, *(option.name for option in fields(RunOptions)))


@dataclass(frozen=True)
class Typed:
    """An option of a command line.

    Args:
        text: `--NAME=VALUE`, or `--NAME` where there is no value.
        name: without the dashes and without `init_args`, which the parser does not want.
        value: None where none was typed.
    """

    text: str
    name: str
    value: str | None


def typed_options(arguments: list[str]) -> list[Typed]:
    """The options among the arguments; the value may be an argument of its own."""
    found = []
    for argument, following in pairwise([*arguments, "--"]):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            given = value if equals else None if following.startswith("--") else following
            text = name if given is None else f"{name}={given}"
            found.append(Typed(text, name.removeprefix("--").replace(".init_args.", "."), given))
    return found


def chosen_values(arguments: list[str]) -> dict[str, str | None]:
    """What the options are given, by their names, the last one's; a class path is what the option itself is given."""
    return {option.name.removesuffix(".class_path"): option.value for option in typed_options(arguments)}


def check_options(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse what no part of a run takes, in a composed config or among the arguments after it.

    The UserError has the nearest name, or says what is wanted. Of classes that `signature` does not know, nothing is refused.
    """
    options = typed_options(arguments)
    require(
        bool(config) or any(option.name.startswith("model") for option in options),
        f"a run wants a config: --config {EXAMPLE}, or another of configs/",
    )
    for name in config:
        _check_name(name, NAMES, f"the config has {name!r}, which is no part of a run", "")
    for option in options:
        name, dot, rest = option.name.partition(".")
        _check_name(name, NAMES, f"{option.text}: there is no such option", "--", dot + rest)
    _check_callback_options(config, options)
    _check_parts(config, options, chosen_values(arguments))


def _check_parts(config: Mapping[str, Any], options: list[Typed], chosen: dict[str, str | None]) -> None:
    """The names and values in each part, against the classes that are made of them."""
    of_run = signature(RUN)
    assert of_run is not None
    for name, value in config.items():
        if name in of_run.options:
            check_value(f"the config's {name}: {value}", of_run.options[name], value)
    for option in options:
        if option.name in of_run.options and option.value is not None:
            check_value(option.text, of_run.options[option.name], option.value, typed=True)
    callbacks = config.get("callbacks")
    named = callbacks if isinstance(callbacks, dict) else {}
    parts = {name: config.get(name) for name in ("model", *PARTS)}
    for part, given in [*parts.items(), *((f"callbacks.{name}", value) for name, value in named.items())]:
        path = PARTS.get(part, "")
        _check_config(part, given, path)
        for option in options:
            if option.name.startswith(f"{part}."):
                _check_option(option, part, option.name.removeprefix(f"{part}.").split("."), given, path, chosen)


def check_prompts(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse a prompt file that is not there: most first runs lack one."""
    data = config.get("data")
    source = chosen_values(arguments).get("data.prompts") or (data.get("prompts") if isinstance(data, dict) else None)
    if isinstance(source, str) and not source.startswith(("shapes:", "hub:")):
        of_a_split = source.rpartition(":")[0]  # of FOLDER:SPLIT, the folder
        if not Path(source).exists() and not (of_a_split and Path(of_a_split).is_dir()):
            read_prompt_file(Path(source))


def _values(given: Any) -> dict[str, Any]:
    """Of what a config says of an object, what its constructor gets."""
    values = given.get("init_args", given) if isinstance(given, dict) else {}
    return values if isinstance(values, dict) else {}


def _class_path(given: Any, otherwise: str) -> str:
    return str(given.get("class_path", otherwise)) if isinstance(given, dict) else otherwise


def _check_config(place: str, given: Any, path: str) -> None:
    """The keys and values of a mapping, and of those in it, against the class that is made of it."""
    path = _class_path(given, path)
    known = signature(path)
    for name, value in _values(given).items() if known else ():
        assert known is not None
        if name not in ("class_path", "init_args"):
            problem = f"the config has {place}.{name}: {path.rpartition('.')[2]} has no option {name!r}"
            _check_name(name, known.options, problem, f"{place}.")
            option = known.options[name]
            check_value(f"the config's {place}.{name}: {value}", option, value)
            _check_config(f"{place}.{name}", value, option.of_class or "")


def _check_option(
    typed: Typed, place: str, names: list[str], given: Any, path: str, chosen: dict[str, str | None]
) -> None:
    """One option, e.g. `--model.lora.rank=8`, against the classes that its name leads through; `given` is the config's part."""
    for position, name in enumerate(name.removesuffix("+") for name in names):
        path = chosen.get(place) or _class_path(given, path)
        known = signature(path)
        if known is None or name in ("class_path", "help"):
            return
        problem = f"{typed.text}: {path.rpartition('.')[2]} has no option {name!r}"
        _check_name(
            name, known.options, problem, f"--{place}.", "".join(f".{inner}" for inner in names[position + 1 :])
        )
        option, given = known.options[name], _values(given).get(name)
        if position == len(names) - 1 and typed.value is not None and not typed.name.endswith("+"):
            check_value(typed.text, option, typed.value, typed=True, example=given)
        place, path = f"{place}.{name}", option.of_class or ""


def _check_name(name: str, names: Iterable[str], problem: str, prefix: str, rest: str = "") -> None:
    known = list(names)
    if name not in known:
        raise UserError(f"{problem}; {did_you_mean(name, known, prefix, rest=rest)}")


def _check_callback_options(config: Mapping[str, Any], options: list[Typed]) -> None:
    """Refuse options of a callback that has no class: the parser would look for them in Lightning's base class."""
    known: set[str] = set()
    if isinstance(callbacks := config.get("callbacks"), dict):
        for name, callback in callbacks.items():
            classless = isinstance(callback, dict) and "class_path" not in callback
            require(not classless, f"the config has options of callbacks.{name}, but no class: give its class_path too")
        known = {name for name, callback in callbacks.items() if callback is not None}
    for option in options:
        if option.name.startswith("callbacks."):
            name, _, key = option.name.removeprefix("callbacks.").partition(".")
            if key in ("", "class_path"):
                known.add(name)
            has = ", ".join(sorted(known)) or "none"
            hint = f"give its class first, --callbacks.{name}=CLASS"
            require(name in known, f"{option.text}: this run has no callback {name!r} (it has: {has}); {hint}")


def check_folders(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse what would give a part of the run another folder than `run_dir`. Raises UserError."""
    given = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    trainer = config.get("trainer") or {}
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        of_logger = logger.get("init_args") if isinstance(logger, dict) else None
        given |= {f"trainer.logger.init_args.{name}" for name in of_logger or {}}
    given |= {f"trainer.{name}" for name in trainer}
    for name in ("trainer.default_root_dir", "trainer.logger.save_dir", "trainer.logger.init_args.save_dir"):
        require(name not in given, f"{name} cannot be given: all that a run writes is in one folder, --run_dir")
