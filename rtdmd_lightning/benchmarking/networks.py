"""Networks of the published shapes with random weights, made where they are used: nothing is read, nothing is downloaded."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.planning.blocks import Kind
from rtdmd_lightning.planning.parts import PipelineConfigs, pipeline_configs
from rtdmd_lightning.planning.weightless import Weightless, block_kinds, weightless
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.randomness import keyed_generator

BIAS = 0.02
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
TINY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SD3Transformer2DModel": HEADS
    | {"num_layers": 3, "caption_projection_dim": 32, "pooled_projection_dim": 32, "dual_attention_layers": [0]},
    "FluxTransformer2DModel": HEADS
    | {"num_layers": 2, "num_single_layers": 2, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6]},
    "Flux2Transformer2DModel": HEADS
    | {"num_layers": 2, "num_single_layers": 2, "timestep_guidance_channels": 32, "axes_dims_rope": [4, 4, 4, 4]},
}
TINY_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TINY_RESOLUTION = 64


class RandomWeights(Weightless):
    """A `Source` of parts with the shapes of their configs and random numbers.

    Args:
        family, configs, blocks: see `Weightless`.
        place: where they are made; by default on the device that is torch's default then. What is made on the CPU is the same
            for every device that it is moved to.
    """

    def __init__(
        self,
        family: type[PipelineBackbone],
        configs: PipelineConfigs,
        blocks: Counter[Kind],
        place: torch.device | None,
    ) -> None:
        super().__init__(family, configs, blocks)
        self.place = place

    def pipeline(
        self, pipeline_class: Any, pretrained: str, dtypes: dict[str, torch.dtype], given: dict[str, Any]
    ) -> Any:
        with self.place or torch.get_default_device():
            pipeline = super().pipeline(pipeline_class, pretrained, dtypes, given)
            randomise(pipeline.vae)
        return pipeline

    def transformer(self, transformer_class: Any, pretrained: str, dtype: torch.dtype) -> nn.Module:
        with self.place or torch.get_default_device():
            transformer = super().transformer(transformer_class, pretrained, dtype)
            randomise(transformer)
        return transformer


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Weights normal with a variance of 1 / inputs, so that activations stay as large as they are; those of normalisations 1.

    Drawn by torch's own generator of the device that they are on.
    """
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2 and name.endswith("weight"):
            parameter.fill_(1)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.dim() > 1 else BIAS)
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1], device=buffer.device).expand(buffer.shape))
        elif not buffer.is_floating_point():
            buffer.zero_()
        elif "running_var" in name:
            buffer.fill_(1)
        else:
            buffer.normal_(0, BIAS)


def tiny(configs: PipelineConfigs) -> PipelineConfigs:
    """The same classes with the widths and depths of a toy."""
    transformer, vae = configs.parts["transformer"], configs.parts["vae"]
    small = {
        "transformer": replace(transformer, config=transformer.config | TINY_TRANSFORMERS[transformer.class_name]),
        "vae": replace(vae, config=vae.config | TINY_VAE),
    }
    return replace(configs, parts=configs.parts | small)


def random_backbone(
    backbone: PipelineBackbone, *, small: bool = False, few_blocks: bool = False, place: torch.device | None = None
) -> PipelineBackbone:
    """The same backbone, not loaded yet, with random weights and random embeddings of its prompts.

    `small` makes it `tiny`; `few_blocks` leaves one block of each kind; `place` is that of `RandomWeights`.
    """
    configs = pipeline_configs(backbone)
    if small:
        configs = tiny(configs)
    blocks = block_kinds(backbone, configs)
    if few_blocks:
        blocks = Counter(dict.fromkeys(blocks, 1))
    made = weightless(backbone, RandomWeights(type(backbone), configs, blocks, place))
    made.encode_prompts = lambda prompts: random_conditioning(made, prompts)  # type: ignore[method-assign]
    return made


def random_conditioning(backbone: PipelineBackbone, prompts: list[str]) -> Conditioning:
    """Standard normal embeddings on the CPU, which depend on the prompt alone."""

    def of_prompt(prompt: str) -> Conditioning:
        generator = keyed_generator(0, 0, prompt)
        with torch.device("cpu"):
            zeros = backbone.blank_conditioning(1)
            drawn = {
                name: torch.randn(blank.shape, generator=generator).to(blank.dtype)
                for name, blank in zeros.tensors().items()
            }
        return Conditioning(**drawn)

    return Conditioning.cat([of_prompt(prompt) for prompt in prompts])
