"""Code of the user's own that a config names: what goes wrong in it is one sentence, with its file and line."""

import importlib
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rtdmd_lightning.utils.errors import UserError, user_error_in

PACKAGE = str(Path(__file__).parents[1])
LIBRARIES = (PACKAGE, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")))
INSTALLED = {"site-packages", "dist-packages"}  # of this environment, of the user, of the system


def import_module(name: str) -> ModuleType:
    """Raises UserError where it cannot be imported, whatever it raises."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} cannot be imported: {_told(error, _place(error))}") from error


def import_classes(config: Any) -> None:
    """Import the modules of all classes that a config names. Raises UserError for one whose import raises.

    A module that is not there is left to the parser, which knows what was meant.
    """
    if isinstance(config, list):
        for entry in config:
            import_classes(entry)
    if not isinstance(config, dict):
        return
    module = str(config.get("class_path", "")).rpartition(".")[0]
    if module and not module.startswith("."):
        try:
            importlib.import_module(module)
        except ImportError:
            pass
        except (Exception, SystemExit) as error:
            raise UserError(f"{module} cannot be imported: {_told(error, _place(error))}") from error
    for entry in config.values():
        import_classes(entry)


@contextmanager
def errors_of_own_code() -> Iterator[None]:
    """An error that comes from a file outside of this package and of all libraries is a UserError; so is its `sys.exit`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        inner: BaseException | None = error
        while inner is not None and (isinstance(inner, UserError) or _place(inner) is None):
            inner = inner.__cause__ or inner.__context__  # the parser hides what an import raises in errors of its own
        if inner is None or isinstance(user_error_in(error), UserError):
            raise
        raise UserError(_told(inner, _place(inner))) from error


def _place(error: BaseException) -> str | None:
    """File and line of the user's own code that the error went through last."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def _is_own(filename: str) -> bool:
    return not filename.startswith(("<", *LIBRARIES)) and INSTALLED.isdisjoint(Path(filename).parts)


def _told(error: BaseException, place: str | None) -> str:
    what = f"it calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    return f"{place}: {what}" if place else what
