"""What a class or a function of this package takes, read from its file and not imported.

Lightning alone takes five seconds of a processor to import; a help text, or a mistyped option, should not wait for it.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docstring_parser

ROOT = Path(__file__).parents[2]
PACKAGE = "rtdmd_lightning"


@dataclass(frozen=True)
class Option:
    """A parameter of a constructor.

    Args:
        name: of the parameter.
        type: its annotation, as it is written.
        default: as it is written; None where there is none.
        meaning: what the docstring says of it.
        of_class: the path of the class that its annotation names, if it is one of this package.
    """

    name: str
    type: str
    default: str | None
    meaning: str
    of_class: str | None


@dataclass(frozen=True)
class Signature:
    """What a class says of itself (in a sentence), and the parameters of its constructor by name."""

    summary: str
    options: dict[str, Option]


def signature(path: str) -> Signature | None:
    """Of the class or function at an import path, e.g. `rtdmd_lightning.modules.RTDMDModule`.

    A constructor that takes any further ones passes them on: to them belong those of the class that it inherits from. None where
    the class, or the one whose constructor it has, is not of this package.
    """
    found = _find(path)
    if found is None:
        return None
    module, node = found
    text = docstring_parser.parse(ast.get_docstring(node) or "")
    said = {name.strip(): param.description or "" for param in text.params for name in param.arg_name.split(",")}
    summary = (text.short_description or "").replace("\n", " ")
    if isinstance(node, ast.FunctionDef):
        return Signature(summary, _of_parameters(node.args.args, node.args, module, said))
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    own: dict[str, Option] = {}
    if init is not None:
        own = _of_parameters(init.args.args[1:], init.args, module, said)
        if not init.args.kwarg:
            return Signature(summary, own)
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return Signature(summary, _of_fields(node, module, said))
    inherited = signature(_class_at(node.bases[0], module) or "") if node.bases else None
    return None if inherited is None else Signature(summary, own | {**inherited.options, **own})


def _of_parameters(
    positional: list[ast.arg], given: ast.arguments, module: str, said: dict[str, str]
) -> dict[str, Option]:
    without: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    pairs = [*zip(positional, [*without, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {
        argument.arg: _option(argument.arg, argument.annotation, default, module, said) for argument, default in pairs
    }


def _of_fields(node: ast.ClassDef, module: str, said: dict[str, str]) -> dict[str, Option]:
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    named = [(part.target.id, part.annotation, part.value) for part in fields if isinstance(part.target, ast.Name)]
    return {name: _option(name, annotation, default, module, said) for name, annotation, default in named}


def _option(
    name: str, annotation: ast.expr | None, default: ast.expr | None, module: str, said: dict[str, str]
) -> Option:
    kind = ast.unparse(annotation) if annotation else "Any"
    meaning = " ".join(said.get(name, "").split())
    return Option(name, kind, ast.unparse(default) if default else None, meaning, _class_at(annotation, module))


def _class_at(annotation: ast.expr | None, module: str) -> str | None:
    """The path of the class that a name means in a module; of `X | None`, of X."""
    if isinstance(annotation, ast.BinOp):
        return _class_at(annotation.left, module)
    name = annotation.id if isinstance(annotation, ast.Name) else None
    return f"{module}.{name}" if name and _find(f"{module}.{name}") else None


def introduction(module: str) -> str:
    """The docstring of a module."""
    tree = _parsed(module)
    return (ast.get_docstring(tree) or "") if tree else ""


def _find(path: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """The class or function at a path and the module that defines it."""
    module, _, name = path.rpartition(".")
    tree = _parsed(module)
    top = tree.body if tree else []
    inner = [statement for node in top if isinstance(node, ast.If) for statement in node.body]  # if TYPE_CHECKING
    for node in [*top, *inner]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{node.module}.{alias.name}")
    return None


@cache
def _parsed(module: str) -> ast.Module | None:
    if module.partition(".")[0] != PACKAGE:
        return None
    place = ROOT.joinpath(*module.split("."))
    file = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None
