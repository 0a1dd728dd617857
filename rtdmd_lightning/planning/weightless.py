"""A source of a backbone's parts that have shapes but no weights. Text encoders are weighed, never run."""

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.planning.blocks import Kind, kinds, thin
from rtdmd_lightning.planning.parts import PipelineConfigs, materialise, parameter_bytes

Family = TypeVar("Family", bound=PipelineBackbone)


class Weightless:
    """A `Source` (`models/source.py`) that builds parts from their configs alone, in the fake mode that is active.

    Args:
        family: of the pipeline.
        configs: of its parts. The generator's own transformer, where there is one, has the config of the teacher's.
        blocks: how many of each kind the transformers are built with.
    """

    def __init__(self, family: type[PipelineBackbone], configs: PipelineConfigs, blocks: Counter[Kind]) -> None:
        self.family, self.configs, self.blocks = family, configs, blocks

    def check(self, pretrained: str, parts: list[str]) -> None:
        """Nothing has to be there."""

    def config(self, reader: Any, pretrained: str, part: str) -> dict[str, Any]:
        return self.configs.scheduler if part == "scheduler" else self.configs.parts[part].config

    def digest(self, pretrained: str, part: str) -> str:
        return "none"

    def pipeline(
        self, pipeline_class: Any, pretrained: str, dtypes: dict[str, torch.dtype], given: dict[str, Any]
    ) -> Any:
        """Transformer, autoencoder and scheduler; there are no text encoders and no tokenizers."""
        transformer = self.transformer(self.family.transformer_class, pretrained, dtypes["default"])
        vae = materialise(self.configs.parts["vae"].build(), dtypes["vae"])
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.configs.scheduler)
        no_encoders = dict.fromkeys(self.family.encoders)
        return pipeline_class(transformer=transformer, vae=vae, scheduler=scheduler, **no_encoders)

    def transformer(self, transformer_class: Any, pretrained: str, dtype: torch.dtype) -> nn.Module:
        return materialise(self.bare_transformer(), dtype)

    def bare_transformer(self) -> nn.Module:
        """On the meta device."""
        transformer = self.configs.parts["transformer"].build()
        thin(transformer, self.family.block_classes, self.blocks)
        return transformer


def weightless(backbone: Family, source: Weightless) -> Family:
    """The same backbone with the same options, not loaded yet, that will have no weights. It has no embedding cache."""
    planned = copy.copy(backbone)
    planned.source = source
    planned.embedding_cache, planned.text_encoders = None, True
    return planned


def block_kinds(backbone: PipelineBackbone, configs: PipelineConfigs) -> Counter[Kind]:
    """How many blocks of each kind the backbone's transformer has."""
    return kinds(configs.parts["transformer"].build(), backbone.block_classes)


def text_encoder_bytes(backbone: PipelineBackbone, configs: PipelineConfigs) -> int:
    """Of the text encoders that the backbone's options use, in the dtype of its weights."""
    used = [name for name in backbone.encoders if name in configs.parts and name not in backbone.unused_encoders()]
    return sum(parameter_bytes(configs.parts[name].build().parameters(), backbone.dtype) for name in used)
