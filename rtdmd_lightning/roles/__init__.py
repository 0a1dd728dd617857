"""LoRA adapters outside of training: read from any format, stacked, applied, merged, written in any format."""

from rtdmd_lightning.roles.adapter import Adapter, LayerUpdate, stack
from rtdmd_lightning.roles.apply import check_fit, check_settings, inject, merge
from rtdmd_lightning.roles.reading import read

__all__ = ["Adapter", "LayerUpdate", "check_fit", "check_settings", "inject", "merge", "read", "stack"]
