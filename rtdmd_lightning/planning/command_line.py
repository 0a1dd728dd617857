"""What `plan` reads of its command line itself; all else are the options of `fit`."""

import math
from itertools import pairwise
from pathlib import Path

from rtdmd_lightning.utils.errors import require

CARD = "--card"


def taken(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, None where it is not there, and the other arguments."""
    value, others, rest = None, [], iter(arguments)
    for argument in rest:
        name, equals, given = argument.partition("=")
        if name == option:
            value = given if equals else next(rest, "")
        else:
            others.append(argument)
    return value, others


def cards(text: str) -> list[float]:
    """Sizes in GB, with commas between them. Raises UserError for what is none."""
    return [_gigabytes(size) for size in text.split(",")]


def title(options: list[str]) -> str:
    """The last config's folder and name."""
    configs = [value for option, value in pairwise(options) if option in ("--config", "-c")]
    configs += [option.partition("=")[2] for option in options if option.startswith("--config=")]
    return "/".join(Path(configs[-1]).with_suffix("").parts[-2:]) if configs else "run"


def _gigabytes(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    require(0 < size < math.inf, f"{CARD} wants a card's memory in GB, a number above 0, not {text!r}")
    return size
