"""LoRA adapters outside of training: read from any format, stacked, applied, merged, written in any format."""

from rtdmd_lightning.roles.adapter import Adapter, LayerUpdate, stack
from rtdmd_lightning.roles.apply import at_settings, check_fit, inject, merge
from rtdmd_lightning.roles.reading import read

__all__ = ["Adapter", "LayerUpdate", "at_settings", "check_fit", "inject", "merge", "read", "stack"]
