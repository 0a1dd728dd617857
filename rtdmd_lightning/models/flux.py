"""FLUX.1: dev, whose guidance scale is an input, and its guidance-free relatives, which get classifier-free guidance."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

from rtdmd_lightning.models.base import Velocity
from rtdmd_lightning.models.packed import PackedBackbone
from rtdmd_lightning.models.sd3 import SD3Backbone
from rtdmd_lightning.objectives import flux_mu
from rtdmd_lightning.structures import Conditioning


class FluxBackbone(PackedBackbone):
    """`FluxPipeline`. Latents are packed as the transformer takes them: `[tokens, 4 * C]`, a token for 2x2 of the VAE's.

    A guidance-distilled model (`guidance_embeds` in its config) was only ever trained together with a scale, so every forward
    pass gets one: the teacher's is the guidance scale that it is asked for, all other roles' is `guidance`. The default is the
    teacher's own 3.5 (METHOD section 4). There generator and fake score, whose adapters start at zero, *are* the guided
    teacher; at another value they would first have to learn its guidance. And `FluxPipeline` passes 3.5 unless told
    otherwise, so a student trained with it samples there as it was trained.

    Args:
        pretrained, resolution: see `PipelineBackbone`.
        guidance: the guidance input of all roles but the teacher. Unused by a model without such an input.
        options: see `PipelineBackbone` (the command line lists them here too).
    """

    lora_targets = SD3Backbone.lora_targets  # single blocks have the first three of them
    pipeline_class = FluxPipeline
    transformer_class = FluxTransformer2DModel
    block_classes = (FluxTransformerBlock, FluxSingleTransformerBlock)
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def __init__(self, pretrained: str, resolution: int, guidance: float = 3.5, **options: Any) -> None:
        super().__init__(pretrained, resolution, **options)
        self.guidance = guidance

    @property
    def takes_guidance(self) -> bool:
        return self.loaded.transformer.config.guidance_embeds

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
        image_ids = self.loaded._prepare_latent_image_ids(1, self.side, self.side, latents.device, self.dtype)
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
