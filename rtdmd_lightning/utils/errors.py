"""What a person did wrong, told in one sentence.

`UserError` is raised wherever input (a config, a file, a number on the command line) cannot be used; every command line of
this project runs inside `readable_errors`, which prints the sentence and exits with status 2. Anything else is a bug and
keeps its traceback.
"""

import contextlib
import errno
import math
import os
import re
import sys
from collections.abc import Iterator

from jsonargparse import ArgumentError

DEBUG_VARIABLE = "RTDMD_DEBUG"
OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not allowed
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),  # no place for it
)


class UserError(ValueError):
    """Input that cannot be used; the message names the key, file or value and says what to do."""


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with the sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def check_not_negative(where: str, **values: float) -> None:
    """Raise UserError, which calls them `where` and their names, for numbers below 0."""
    for name, value in values.items():
        require(0 <= value < math.inf, f"{where}{name} must be a number from 0 up, not {value}")


def check_positive(where: str, **values: float) -> None:
    """The same for numbers that are not above 0."""
    for name, value in values.items():
        require(0 < value < math.inf, f"{where}{name} must be above 0, not {value}")


def first_line(error: BaseException) -> str:
    """What it says, without the page of advice that the hub's errors add."""
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Print a `UserError`, or what the command-line parser refused, as one sentence on stderr and exit with status 2.

    Set the environment variable RTDMD_DEBUG=1 to get the traceback instead.
    """
    try:
        yield
    except Exception as error:
        told = user_error_in(error) or disk_error_in(error)
        if told is None or os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"error: {_sentence(told)} (set {DEBUG_VARIABLE}=1 for the traceback)", file=sys.stderr)
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    """What it says, in a line. Where an option takes a name or an object, the parser says much: what is wrong with the object."""
    text = " ".join((of_the_disk(error) if isinstance(error, OSError) else str(error)).split())
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a path may hold what no terminal can print
    of_class = re.match(r"(Parser key \S+:) .* Problem with given class_path (\S+:) (.+?) Given value type:", text)
    return " ".join(of_class.groups()) if of_class else text


def user_error_in(error: BaseException | None) -> BaseException | None:
    """Of the error and those it was raised from: a `UserError`, or else the innermost that the parser raised.

    jsonargparse wraps what it refuses, and what a constructor raises, in sentences that quote the whole configuration.
    """
    refused = None
    while error is not None and not isinstance(error, UserError):
        refused = error if isinstance(error, ArgumentError) else refused
        error = error.__cause__
    return error or refused


def disk_error_in(error: BaseException | None) -> OSError | None:
    """Of the error and those under way when it was raised: a disk that is full, or a path that cannot be written or read.

    That is the machine's, and no bug; torch hides it behind a RuntimeError of its own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


def of_the_disk(error: OSError) -> str:
    """What it says, with the path where it knows one: `out/a.png: No space left on device`."""
    path = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{path}{error.strerror}"
