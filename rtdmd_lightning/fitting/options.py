"""What a run's command line is refused for before Lightning is imported, which takes seconds: names that nothing has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from rtdmd_lightning.utils.configuration import EXAMPLE
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.signatures import signature

DATA = "rtdmd_lightning.data.RolloutDataModule"
MOST_NAMES = 8  # that a message lists


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


OF_THE_PARSER = ("config", "print_config", "help", "seed_everything", "trainer", "model", "data", "callbacks")
NAMES = (*OF_THE_PARSER, *(option.name for option in fields(RunOptions)))


def check_options(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse names that nothing has, in a composed config or among the arguments after it. The UserError has the nearest name.

    Of `trainer`, and of classes of other packages, the names are not known here.
    """
    require(
        bool(config) or any(argument.startswith("--model") for argument in arguments),
        f"a run wants a config: --config {EXAMPLE}, or another of configs/",
    )
    options = [argument for argument in arguments if argument.startswith("--")]
    for name in config:
        _check_name(name, NAMES, f"the config has {name!r}, which is no part of a run", "")
    for option in options:
        part = option.removeprefix("--").partition("=")[0].partition(".")[0]
        _check_name(part, NAMES, f"{option}: there is no such option", "--")
    check_callback_options(config, options)
    classes = chosen_values(arguments)
    callbacks = config.get("callbacks")
    named = callbacks if isinstance(callbacks, dict) else {}
    parts = [("model", "", config.get("model")), ("data", DATA, config.get("data"))]
    for part, path, given in [*parts, *((f"callbacks.{name}", "", value) for name, value in named.items())]:
        _check_config(part, given, path)
        for option in options:
            name = option.removeprefix("--").partition("=")[0]
            if name.startswith(f"{part}."):
                _check_option(option, part, name.removeprefix(f"{part}.").split("."), given, path, classes)


def chosen_values(arguments: list[str]) -> dict[str, str]:
    """What the options are given, by their names, the last one's; a class path is what the option itself is given."""
    chosen = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            chosen[name.removeprefix("--").removesuffix(".class_path")] = value if equals else following
    return chosen


def check_prompts(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse a prompt file that is not there: most first runs lack one."""
    data = config.get("data")
    source = chosen_values(arguments).get("data.prompts") or (data.get("prompts") if isinstance(data, dict) else None)
    if isinstance(source, str) and not source.startswith(("shapes:", "hub:")) and not Path(source).exists():
        from rtdmd_lightning.data.prompts import load_prompts  # late: a help needs no torch

        load_prompts(source)


def _values(given: Any) -> dict[str, Any]:
    """Of what a config says of an object, what its constructor gets."""
    values = given.get("init_args", given) if isinstance(given, dict) else {}
    return values if isinstance(values, dict) else {}


def _class_path(given: Any, otherwise: str | None) -> str:
    return str(given.get("class_path", otherwise)) if isinstance(given, dict) else otherwise or ""


def _check_config(place: str, given: Any, path: str) -> None:
    """The keys of a mapping, and of those in it, against the class that is made of it."""
    path = _class_path(given, path)
    known = signature(path)
    for name, value in _values(given).items() if known else ():
        assert known is not None
        if name not in ("class_path", "init_args"):
            problem = f"the config has {place}.{name}: {path.rpartition('.')[2]} has no option {name!r}"
            _check_name(name, known.options, problem, f"{place}.")
            _check_config(f"{place}.{name}", value, known.options[name].of_class or "")


def _check_option(option: str, place: str, names: list[str], given: Any, path: str, classes: dict[str, str]) -> None:
    """One option's name, e.g. `--model.lora.rank=8`, against the classes that it leads through."""
    for name in (name.removesuffix("+") for name in names if name != "init_args"):
        path = classes.get(place) or _class_path(given, path)
        known = signature(path)
        if known is None or name in ("class_path", "help"):
            return
        problem = f"{option}: {path.rpartition('.')[2]} has no option {name!r}"
        _check_name(name, known.options, problem, f"--{place}.")
        place, given, path = f"{place}.{name}", _values(given).get(name), known.options[name].of_class or ""


def _check_name(name: str, names: Iterable[str], problem: str, prefix: str) -> None:
    known = list(names)
    if name not in known:
        raise UserError(f"{problem}; {did_you_mean(name, known, prefix)}")


def did_you_mean(name: str, known: list[str], prefix: str = "") -> str:
    """The nearest of the names, or where there is none, all of them or where they are listed."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return (
        f"it has {', '.join(known)}"
        if len(known) <= MOST_NAMES
        else "`rtdmd fit --config FILE --help` lists the options"
    )


def check_callback_options(config: Mapping[str, Any], options: list[str]) -> None:
    """Refuse options of a callback that has no class: the parser would look for them in Lightning's base class."""
    known: set[str] = set()
    if isinstance(callbacks := config.get("callbacks"), dict):
        for name, callback in callbacks.items():
            classless = isinstance(callback, dict) and "class_path" not in callback
            require(not classless, f"the config has options of callbacks.{name}, but no class: give its class_path too")
        known = {name for name, callback in callbacks.items() if callback is not None}
    for option in (option.partition("=")[0] for option in options if option.startswith("--callbacks.")):
        name, _, key = option.removeprefix("--callbacks.").partition(".")
        if key in ("", "class_path"):
            known.add(name)
        has = ", ".join(sorted(known)) or "none"
        hint = f"give its class first, --callbacks.{name}=CLASS"
        require(name in known, f"{option}: this run has no callback {name!r} (it has: {has}); {hint}")


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
