"""The published models' transformers without their weights: `facts/NAME.json` holds each one's config and where it was read.

For what depends on shapes only (LoRA targets, parameter counts, sharding, memory), and therefore needs no download.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.families import FAMILIES

FOLDER = Path(__file__).parent / "facts"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class PublishedModel:
    """A published model's family, hub id and transformer config.

    Args:
        backbone: the name of its backbone class.
        pretrained: the hub id that teacher and fake score start from.
        source: where the config was read.
        unverified: what of it could not be checked.
        transformer: arguments of the family's transformer class.
        generator_pretrained: the hub id of the generator's own base, where it has one; its transformer has the same config.
    """

    backbone: str
    pretrained: str
    source: str
    unverified: str
    transformer: dict[str, Any]
    generator_pretrained: str | None = None

    @property
    def family(self) -> type[Backbone]:
        return {family.__name__: family for family in FAMILIES}[self.backbone]

    def meta_transformer(self) -> nn.Module:
        """The frozen transformer on the meta device: shapes and names, no memory."""
        with torch.device("meta"):
            return self.family.transformer_class.from_config(self.transformer).requires_grad_(False).eval()


def published(name: str) -> PublishedModel:
    """One of `NAMES`."""
    return PublishedModel(**json.loads((FOLDER / f"{name}.json").read_text()))
