"""A backbone whose networks have shapes but no weights: what a run is traced with. Text encoders are weighed, never run."""

import copy
from collections import Counter
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from rtdmd_lightning.models.flux2 import Flux2Backbone
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.planning.blocks import Kind, kinds, thin
from rtdmd_lightning.planning.parts import PipelineConfigs, materialise, parameter_bytes, pipeline_configs
from rtdmd_lightning.sampling.structures import Conditioning


class Weightless(PipelineBackbone):
    """Mixed into a family before its own class: the parts are built from configs, in the fake mode that is active."""

    configs: PipelineConfigs
    blocks: Counter[Kind]
    """How many of each kind the transformer is built with."""

    def with_blocks(self, blocks: Counter[Kind]) -> "Weightless":
        """The same, not loaded, with these blocks."""
        other = copy.copy(self)
        other.blocks = blocks
        return other

    def check(self) -> None:
        self.check_resolution()

    def read_config(self, part: str) -> dict[str, Any]:
        return self.configs.scheduler if part == "scheduler" else self.configs.parts[part].config

    def load(self) -> nn.Module:
        self.check()
        transformer, vae = self._transformer(), materialise(self.configs.parts["vae"].build(), self.vae_dtype)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.configs.scheduler)
        rest = dict.fromkeys(self.encoders)
        self.pipeline = self.pipeline_class(transformer=transformer, vae=vae, scheduler=scheduler, **rest)
        return self._frozen(transformer)

    def load_generator_base(self) -> nn.Module | None:
        """It has the shapes of the first."""
        if not isinstance(self, Flux2Backbone) or self.generator_pretrained is None:
            return None
        return self._frozen(self._transformer())

    def to(self, device: torch.device) -> None:
        """Nothing of it is anywhere."""

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        config = self.loaded.transformer.config
        tokens, count = self.max_sequence_length, len(prompts)
        if "text_encoder_3" in self.encoders:  # SD3: CLIP's tokens come before T5's
            tokens += self.configs.parts["text_encoder"].config["max_position_embeddings"]
        embeds = torch.zeros(count, tokens, config.joint_attention_dim, dtype=self.dtype)
        if "pooled_projection_dim" not in config:
            return Conditioning(embeds)
        return Conditioning(embeds, torch.zeros(count, config.pooled_projection_dim, dtype=self.dtype))

    def text_encoder_bytes(self) -> int:
        used = [name for name in self.encoders if name in self.configs.parts and name not in self.unused_encoders()]
        return sum(parameter_bytes(self.configs.parts[name].build().parameters(), self.dtype) for name in used)

    def bare_transformer(self) -> nn.Module:
        """On the meta device, with the blocks that are wanted."""
        transformer = self.configs.parts["transformer"].build()
        thin(transformer, self.block_classes, self.blocks)
        return transformer

    def _transformer(self) -> nn.Module:
        return materialise(self.bare_transformer(), self.dtype)


def weightless(backbone: PipelineBackbone) -> Weightless:
    """The same backbone, with the same options, without weights. Raises UserError where its shapes are not known."""
    family = type(backbone)
    planned: Weightless = object.__new__(type(f"Weightless{family.__name__}", (Weightless, family), {}))
    configs = pipeline_configs(backbone)
    blocks = kinds(configs.parts["transformer"].build(), backbone.block_classes)
    vars(planned).update(vars(backbone), configs=configs, blocks=blocks)
    return planned
