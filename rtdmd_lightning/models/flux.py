"""FLUX.1: dev, whose guidance scale is an input, and its guidance-free relatives, which get classifier-free guidance."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

from rtdmd_lightning.models.base import Velocity
from rtdmd_lightning.models.packed import PackedBackbone
from rtdmd_lightning.models.sd3 import SD3Backbone
from rtdmd_lightning.objectives import flux_mu
from rtdmd_lightning.sampling.structures import Conditioning

PIPELINE_GUIDANCE = 3.5  # of `FluxPipeline`, and of the paper's teacher


class FluxBackbone(PackedBackbone):
    """`FluxPipeline`. Latents are packed as the transformer takes them: `[tokens, 4 * C]`, a token for 2x2 of the VAE's.

    A guidance-distilled model (`guidance_embeds` in its config) takes a scale in every forward pass. The teacher's is the one
    that it is asked for; generator, fake score and EMA get `guidance`, in training and in drawing. The default is the paper's
    1.0 (METHOD section 0.1). Adapters start at zero, so the student begins as the base under guidance 1.0, and learns what
    the teacher draws under 3.5. `FluxPipeline` passes 3.5 unless told otherwise: call it with `guidance_scale=1.0` to draw a
    student.

    Args:
        pretrained, resolution: see `PipelineBackbone`.
        guidance: the guidance input of all roles but the teacher; a student is drawn with the one that it was trained with.
            Unused by a model without such an input.
        options: see `PipelineBackbone` (the command line lists them here too).
    """

    lora_targets = SD3Backbone.lora_targets  # single blocks have the first three of them
    pipeline_class = FluxPipeline
    transformer_class = FluxTransformer2DModel
    block_classes = (FluxTransformerBlock, FluxSingleTransformerBlock)
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def __init__(self, pretrained: str, resolution: int, guidance: float = 1.0, **options: Any) -> None:
        super().__init__(pretrained, resolution, **options)
        self.guidance = guidance

    @cached_property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the model."""
        return bool(self.read_config("transformer").get("guidance_embeds"))

    @property
    def base_guidance_scale(self) -> float:
        return PIPELINE_GUIDANCE if self.takes_guidance else super().base_guidance_scale

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            device=pipeline.text_encoder.device,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning(embeds, pooled)

    def dynamic_mu(self, steps: int) -> float:
        config = self.scheduler_config
        return flux_mu(
            self.tokens,
            base_seq_len=config.base_image_seq_len,
            max_seq_len=config.max_image_seq_len,
            base_shift=config.base_shift,
            max_shift=config.max_shift,
        )

    def velocity(self, transformer: nn.Module, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.pooled is not None
        guidance = conditioning.guidance
        if self.takes_guidance and guidance is None:
            guidance = torch.full_like(sigma, self.guidance)
        image_ids = self.positions(
            "image",
            latents.device,
            lambda: self.loaded._prepare_latent_image_ids(1, self.side, self.side, torch.device("cpu"), self.dtype),
        )
        return transformer(
            hidden_states=latents.to(self.dtype),
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
            txt_ids=image_ids.new_zeros(conditioning.embeds.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0].float()

    def guided_velocity(
        self,
        velocity: Velocity,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        empty: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        """One forward pass of B where the scale is an input; classifier-free guidance otherwise."""
        if not self.takes_guidance:
            return super().guided_velocity(velocity, latents, sigma, conditioning, empty, guidance_scale)
        return velocity(latents, sigma, replace(conditioning, guidance=torch.full_like(sigma, guidance_scale)))

    def to_vae_latents(self, latents: Tensor) -> Tensor:
        pipeline = self.loaded
        grid = pipeline._unpack_latents(latents, self.resolution, self.resolution, pipeline.vae_scale_factor)
        return grid / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
