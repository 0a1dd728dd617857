"""Backbone families."""

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.flux import FluxBackbone
from rtdmd_lightning.models.flux2 import Flux2Backbone
from rtdmd_lightning.models.sd3 import SD3Backbone

__all__ = ["Backbone", "Flux2Backbone", "FluxBackbone", "SD3Backbone"]
