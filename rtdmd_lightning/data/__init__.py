"""Prompts and what is made of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdmd_lightning.data.stream import RolloutDataModule

__all__ = ["RolloutDataModule"]


def __getattr__(name: str) -> Any:
    """The data module when it is asked for: `python -m rtdmd_lightning.data.prompts` must not find itself imported already."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rtdmd_lightning.data import stream

    return getattr(stream, name)
