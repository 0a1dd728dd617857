"""What a class or a function takes, read from its file and not imported.

Lightning alone takes five seconds of a processor to import; a help text, or a mistyped option, should not wait for it.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docstring_parser

PACKAGE = "rtdmd_lightning"
PACKAGES = (PACKAGE, "lightning")  # whose files are read


@dataclass(frozen=True)
class Option:
    """A parameter of a constructor or of a function.

    Args:
        name: of the parameter.
        type: its annotation, as it is written.
        default: as it is written; None where there is none.
        meaning: what the docstring says of it.
        of_class: the path of the class that its annotation names, if it is one of `PACKAGES`.
    """

    name: str
    type: str
    default: str | None
    meaning: str
    of_class: str | None


@dataclass(frozen=True)
class Signature:
    """What a class or a function says of itself (in a sentence), and its parameters by name."""

    summary: str
    options: dict[str, Option]


@dataclass(frozen=True)
class _Found:
    """A definition, and the module that it stands in."""

    node: ast.ClassDef | ast.FunctionDef
    module: str


@cache
def signature(path: str) -> Signature | None:
    """Of the class or function at an import path, e.g. `rtdmd_lightning.modules.RTDMDModule`.

    A constructor of this package that takes any further parameters passes them on: to them belong those of the class that it
    inherits from. None where the class, or the one whose constructor it has, is not of `PACKAGES`, or takes any parameters.
    """
    found = _find(path)
    if found is None:
        return None
    node = found.node
    text = docstring_parser.parse(ast.get_docstring(node) or "")
    said = {name.strip(): param.description or "" for param in text.params for name in param.arg_name.split(",")}
    summary = (text.short_description or "").replace("\n", " ")
    if isinstance(node, ast.FunctionDef):
        return Signature(summary, _of_parameters(node.args, found.module, said))
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if init is None and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return Signature(summary, _of_fields(node, found.module, said))
    own = {} if init is None else _of_parameters(init.args, found.module, said)
    if init is not None and not init.args.kwarg:
        return Signature(summary, own)
    if init is not None and not found.module.startswith(PACKAGE):  # who knows where it hands them
        return None
    inherited = signature(_class_at(node.bases[0], found.module) or "") if node.bases else None
    return None if inherited is None else Signature(summary, own | {**inherited.options, **own})


def _of_parameters(given: ast.arguments, module: str, said: dict[str, str]) -> dict[str, Option]:
    """Of a function, or of a constructor, whose `self` is left out."""
    without: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    pairs = [*zip(given.args, [*without, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {
        argument.arg: _option(argument.arg, argument.annotation, default, module, said)
        for argument, default in pairs
        if argument.arg != "self"
    }


def _of_fields(node: ast.ClassDef, module: str, said: dict[str, str]) -> dict[str, Option]:
    return {
        part.target.id: _option(part.target.id, part.annotation, part.value, module, said)
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }


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
    """The docstring of a module, each paragraph in a line of its own; indented ones stay as they are."""
    tree = _parsed(module)
    paragraphs = ((ast.get_docstring(tree) if tree else None) or "").split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)


def _find(path: str) -> _Found | None:
    """What stands at a path, or is imported there from a module of `PACKAGES`."""
    module, _, name = path.rpartition(".")
    tree = _parsed(module)
    top = tree.body if tree else []
    inner = [statement for node in top if isinstance(node, ast.If) for statement in node.body]  # if TYPE_CHECKING
    for node in [*top, *inner]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return _Found(node, module)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{node.module}.{alias.name}")
    return None


@cache
def _parsed(module: str) -> ast.Module | None:
    package, *inside = module.split(".")
    spec = importlib.util.find_spec(package) if package in PACKAGES else None  # which does not import it
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inside)
    file = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None
