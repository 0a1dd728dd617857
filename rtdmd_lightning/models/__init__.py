"""Backbone families."""

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.sd3 import SD3Backbone

__all__ = ["Backbone", "SD3Backbone"]
