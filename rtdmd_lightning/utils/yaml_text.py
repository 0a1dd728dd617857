"""YAML that somebody wrote: without keys that stand twice, and of a size that a person writes."""

from pathlib import Path
from typing import Any

import yaml

from rtdmd_lightning.utils.errors import UserError, require

MOST_VALUES = 100_000  # with every alias written out


def read_yaml(path: Path) -> Any:
    """A file's value. Raises UserError, which names the file, for what is no such YAML."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, path, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (UserError, OSError):
        raise
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from error
    except Exception as error:  # what the loader raises depends on the text: !!bool a is a KeyError
        raise UserError(f"{path} is not valid YAML: {error}") from error


def _count(node: yaml.Node, path: Path, counts: dict[int, int | None]) -> int:
    """How many values it holds, an alias as many as what it stands for.

    A small file of aliases of aliases holds billions, and one that holds itself has no end.
    """
    counts[id(node)] = None  # under way
    children = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1
    for child in children:
        known = counts[id(child)] if id(child) in counts else _count(child, path, counts)
        line = child.start_mark.line + 1
        if known is None:
            raise UserError(f"{path} line {line}: the alias stands for a value that holds the alias itself")
        total += known
        require(
            total <= MOST_VALUES, f"{path} line {line}: with its aliases written out it has over {MOST_VALUES} values"
        )
    counts[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        require(
            name not in lines, f"{path}: the key {key.value!r} stands twice, on the lines {lines.get(name)} and {line}"
        )
        lines[name] = line
