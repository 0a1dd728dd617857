"""Prompts and what is made of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdmd_lightning.data.stream import RolloutDataModule

__all__ = ["RolloutDataModule"]


def __getattr__(name: str) -> Any:
    """Imported at its first use: Lightning takes seconds, and whoever reads a prompt file imports this package first."""
    if name == "RolloutDataModule":
        from rtdmd_lightning.data.stream import RolloutDataModule

        return RolloutDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
