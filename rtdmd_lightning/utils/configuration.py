"""Configs made of small files.

A config may begin with `defaults: [other.yaml, …]`, paths relative to itself. The files are merged in that order (mappings
key by key, everything else replaced), the config itself last. `rtdmd fit --config A --config B` merges A
and B in the same manner, and options on the command line come after all of them, wherever they stand.

A file that is put after several kinds of runs may hold, under `for_module`, options that only some modules have: a mapping from
the module's class to what is merged into its `init_args`. Those of other classes are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rtdmd_lightning.utils.errors import UserError, require, user_error_in
from rtdmd_lightning.utils.own_code import errors_of_own_code, import_classes
from rtdmd_lightning.utils.shipped import CONFIGS
from rtdmd_lightning.utils.yaml_text import read_yaml

FOR_MODULE = "for_module"
EXAMPLE = "configs/cold_start/tiny_sd3.yaml"  # to be named where a config is wanted
MOST_FILES = 200  # that a config and its defaults open; one that is named twice is opened twice


def compose(path: Path) -> dict[str, Any]:
    """The config in a file, with its defaults merged in. Raises UserError for a missing or malformed file."""
    merged = reduce(_merge, _chain(path, (), count(1)))
    try:
        composed = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"the config {path} cannot be resolved: {error}") from error
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def _chain(path: Path, opened_by: tuple[Path, ...], opened: Iterator[int]) -> list[dict[str, Any]]:
    """The file's defaults and the file, in the order of their merging. `opened` counts the files of the whole."""
    path = path.resolve()
    if path in opened_by:
        raise UserError(f"the config {path} includes itself through its defaults")
    wanted_by = f" (wanted by {opened_by[-1]})" if opened_by else ""
    require(not path.is_dir(), f"the config {path} is a folder{wanted_by}; name a YAML file in it")
    hint = "" if Path(CONFIGS).is_dir() else "; `rtdmd configs --copy .` puts the shipped ones here"
    require(path.is_file(), f"the config {path} does not exist{wanted_by}{hint}")
    require(next(opened) <= MOST_FILES, f"the config {path}{wanted_by}: its defaults lead to over {MOST_FILES} files")
    config = read_yaml(path) or {}
    if not isinstance(config, dict):
        raise UserError(f"the config {path} must be a mapping of keys to values")
    parents = config.pop("defaults", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) and "\0" not in parent for parent in parents):
        raise UserError(f"the config {path}: 'defaults' must be a list of paths, not {parents!r}")
    return [part for parent in parents for part in _chain(path.parent / parent, (*opened_by, path), opened)] + [config]


def for_module(config: dict[str, Any], module: str | None, path: Path) -> dict[str, Any]:
    """The config with its `for_module` options of this class merged in. Raises UserError where no class is known."""
    by_class = config.get(FOR_MODULE)
    if by_class is None:
        return config
    if not isinstance(by_class, dict) or module is None:
        raise UserError(
            f"the config {path}: '{FOR_MODULE}' is a mapping from a module's class to its options, and needs a config before it "
            "that says which module is trained (model.class_path)"
        )
    rest = {key: value for key, value in config.items() if key != FOR_MODULE}
    return _merge(rest, {"model": {"init_args": by_class.get(module, {})}})


def expand_config_arguments(arguments: list[str]) -> list[str]:
    """Put one `--config`, which holds all the composed configs merged, in the place of every `--config FILE`, and first.

    The parser itself would replace a mapping of a former config that it knows no keys of, e.g. that of the callbacks.
    """
    merged, options = split_arguments(arguments)
    import_classes(merged)
    return [f"--config={yaml.safe_dump(merged, sort_keys=False)}", *options] if merged else options


def split_arguments(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """All composed configs that a command line names, merged, and the other arguments. Nothing is imported."""
    merged: dict[str, Any] = {}
    options, rest = [], iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            options.append(argument)
            continue
        path = value if equals else next(rest, None)
        if not path:
            raise UserError(f"--config wants the path of a YAML file, for example {EXAMPLE}")
        config = compose(Path(path))
        merged = _merge(merged, for_module(config, _module_of(_merge(merged, config)), Path(path)))
    return merged, options


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options in which two configurations differ, as the command line spells them, with both values (None: not there)."""
    before, after = dict(_flat(old)), dict(_flat(new))
    names = [*before, *(name for name in after if name not in before)]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".removeprefix(".")
        if isinstance(value, dict) and value:
            yield from _flat(value, name)
        else:
            yield name, value


def _module_of(config: dict[str, Any]) -> str | None:
    model = config.get("model")
    return model.get("class_path") if isinstance(model, dict) else None


@contextmanager
def refusals_of_libraries() -> Iterator[None]:
    """While a command line's objects are made, what libraries raise of values that they cannot use is input at fault too, and so
    is what classes of the user's own raise."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # late, as all of Lightning

    try:
        with errors_of_own_code():
            yield
    except (ValueError, MisconfigurationException) as error:
        if user_error_in(error) is not None:
            raise
        raise UserError(str(error)) from error
