"""Prompts and what is made of them."""

from rtdmd_lightning.data.stream import PromptDataModule

__all__ = ["PromptDataModule"]
