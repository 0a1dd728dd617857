"""What libraries say of themselves and nobody here can act on: left out of the console, each message by its beginning.

All else that they say stays.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LEFT_OUT = {
    "lightning.pytorch.utilities.rank_zero": (
        "💡 Tip",
        "GPU available: False",
        "TPU available: False",
        "`Trainer.fit` stopped: `max_steps",  # the run's own last lines say more
    ),
    "bitsandbytes.backends.cpu.ops": (
        "Failed to load CPU gemm_4bit_forward",
    ),  # diffusers imports it where it is installed
    "diffusers.models.modeling_utils": ("There are modules in",),  # of the autoencoder, which has its dtype on purpose
}
"""By the logger: how the messages begin."""
WITH_BARS = ("diffusers.utils.logging", "transformers.utils.logging")
WARNINGS = (".*LeafSpec.*",)


class LeftOut(logging.Filter):
    """Drops records whose message begins in one of some ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def quiet_libraries() -> None:
    """Call it once, before they are imported."""
    for name, beginnings in LEFT_OUT.items():
        logging.getLogger(name).addFilter(LeftOut(beginnings))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """While a model is read: no bar for each of its files. Of the libraries that are imported, one of which is to read it."""
    imported: list[Any] = [sys.modules[name] for name in WITH_BARS if name in sys.modules]
    libraries = [library for library in imported if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
