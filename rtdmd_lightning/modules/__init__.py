"""The LightningModules."""

from rtdmd_lightning.modules.ac_dmd import ACDMDModule

__all__ = ["ACDMDModule"]
