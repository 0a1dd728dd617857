"""JSON that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from rtdmd_lightning.utils.errors import UserError


def parse_json(text: str | bytes, place: str) -> Any:
    """The value. Raises UserError, which begins with `place`, for what is no JSON, is nested too deeply, or holds half a letter.

    Half a letter is a lone surrogate, `\\ud800`: no UTF-8 file can hold it.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(place) from error
    except json.JSONDecodeError as error:
        at = f" (line {error.lineno})" if "\n" in error.doc else ""
        raise UserError(f"{place} is not JSON: {error.msg}{at}") from error
    except ValueError as error:  # no UTF-8; a number of thousands of digits
        raise UserError(f"{place} is not JSON: {error}") from error
    check_letters(value, place)
    return value


def read_json(path: Path) -> Any:
    """A file's value. Raises UserError as `parse_json` does."""
    return parse_json(path.read_bytes(), str(path))


def read_rows(path: Path) -> list[Any]:
    """The values in the lines of a file, none if there is no file. A last line without an end is left out: it was being written.

    Raises UserError as `parse_json` does.
    """
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [parse_json(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def check_letters(value: Any, place: str) -> None:
    """Raises UserError for a text with a lone surrogate, anywhere in the value."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} holds half a letter ({error.object[error.start]!r}), which is no text") from error
    except RecursionError as error:
        raise _too_deep(place) from error


def _too_deep(place: str) -> UserError:
    return UserError(f"{place} is not JSON that can be read: it is nested too deeply")
