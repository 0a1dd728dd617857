"""Stable Diffusion 3 and 3.5 Medium, and the embedded tiny world, which has the same classes."""

import json
from pathlib import Path
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from rtdmd_lightning.errors import UserError
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.objectives import shift_sigmas
from rtdmd_lightning.structures import Conditioning

PARTS = ("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
T5_PARTS = ("text_encoder_3", "tokenizer_3")


class SD3Backbone(Backbone):
    """`StableDiffusion3Pipeline` in parts.

    Args:
        pretrained: a diffusers folder or a hub id.
        resolution: height and width of the images, in pixels.
        use_t5: load the third text encoder; without it its part of the prompt is zeros, as in diffusers.
        max_sequence_length: how many T5 tokens (or zeros) a prompt has.
        dtype: of the frozen weights. Adapters are float32 whatever it is.
        gradient_checkpointing: recompute the blocks' activations in the backward pass.
    """

    lora_targets = [
        f"attn.{name}"
        for name in (
            "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        )
    ]  # fmt: skip
    pipeline_class = StableDiffusion3Pipeline
    block_classes = (JointTransformerBlock,)

    def __init__(
        self,
        pretrained: str,
        resolution: int,
        use_t5: bool = True,
        max_sequence_length: int = 256,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        gradient_checkpointing: bool = False,
    ) -> None:
        self.pretrained = pretrained
        self.resolution = resolution
        self.use_t5 = use_t5
        self.max_sequence_length = max_sequence_length
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        self.gradient_checkpointing = gradient_checkpointing
        self.pipeline: StableDiffusion3Pipeline | None = None

    def load(self) -> SD3Transformer2DModel:
        self._check_folder()
        without_t5 = {} if self.use_t5 else dict.fromkeys(T5_PARTS)
        try:
            pipeline = StableDiffusion3Pipeline.from_pretrained(self.pretrained, torch_dtype=self.dtype, **without_t5)
        except OSError as error:
            raise UserError(f"cannot load the base model {self.pretrained!r}: {error}") from error
        self.pipeline = pipeline
        for part in (pipeline.transformer, *self._frozen_parts()):
            part.requires_grad_(False).eval()
        pipeline.vae.to(torch.float32)  # decoded images, and reward gradients through them, are float32
        self._check_resolution()
        if pipeline.scheduler.config.use_dynamic_shifting:
            raise UserError(
                f"{self.pretrained}: its scheduler has use_dynamic_shifting, which the SD3 family does not use"
            )
        if self.gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        return pipeline.transformer

    def to(self, device: torch.device) -> None:
        for part in self._frozen_parts():
            part.to(device)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = self._loaded.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self._loaded.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning(embeds, pooled)

    def latent_shape(self) -> tuple[int, ...]:
        side = self.resolution // self._loaded.vae_scale_factor
        return (self._loaded.transformer.config.in_channels, side, side)

    def sigmas(self, steps: list[int]) -> tuple[float, ...]:
        config = self._loaded.scheduler.config
        shifted = shift_sigmas(steps, shift=config.shift, num_train_timesteps=config.num_train_timesteps)
        return (*shifted, 0.0)

    def velocity(self, transformer: nn.Module, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return transformer(
            hidden_states=latents.to(self.dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
            return_dict=False,
        )[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        vae = self._loaded.vae
        with torch.autocast(latents.device.type, enabled=False):
            unscaled = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
            return vae.decode(unscaled, return_dict=False)[0] / 2 + 0.5

    @property
    def _loaded(self) -> StableDiffusion3Pipeline:
        assert self.pipeline is not None, "load() comes first"
        return self.pipeline

    def _frozen_parts(self) -> list[nn.Module]:
        pipeline = self._loaded
        parts = [pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        return [part for part in parts if part is not None]

    def _check_folder(self) -> None:
        folder = Path(self.pretrained)
        if not folder.is_dir():
            if self.pretrained.startswith(("/", ".")) or self.pretrained.count("/") != 1:
                raise UserError(f"the base model folder {folder} does not exist")
            return  # a hub id
        index = folder / "model_index.json"
        if not index.is_file():
            raise UserError(
                f"the base model folder {folder} has no model_index.json; it should be a diffusers pipeline"
            )
        listed = json.loads(index.read_text())
        wanted = PARTS + (T5_PARTS if self.use_t5 else ())
        missing = [part for part in wanted if part not in listed or not (folder / part).is_dir()]
        if missing:
            raise UserError(f"the base model folder {folder} lacks {', '.join(missing)}")

    def _check_resolution(self) -> None:
        multiple = self._loaded.vae_scale_factor * self._loaded.transformer.config.patch_size
        largest = self._loaded.transformer.config.pos_embed_max_size * multiple
        if self.resolution % multiple or not 0 < self.resolution <= largest:
            raise UserError(
                f"resolution {self.resolution} cannot be represented by {self.pretrained}: it must be a multiple of "
                f"{multiple} (VAE factor x patch size) and at most {largest}"
            )
