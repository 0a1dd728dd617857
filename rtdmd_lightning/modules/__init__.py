"""The LightningModules."""

from rtdmd_lightning.modules.ac_dmd import ACDMDModule
from rtdmd_lightning.modules.rtdmd import RTDMDModule

__all__ = ["ACDMDModule", "RTDMDModule"]
