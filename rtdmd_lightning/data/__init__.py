"""Prompts and what is made of them."""

from rtdmd_lightning.data.stream import RolloutDataModule

__all__ = ["RolloutDataModule"]
