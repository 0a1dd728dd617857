"""Stable Diffusion 3 and 3.5 Medium, and the toy world, which has the same classes."""

from collections.abc import Sequence
from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from rtdmd_lightning.models.folder import unrepresentable
from rtdmd_lightning.models.normalization import fuse_rms_norms
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.objectives import shift_sigmas
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import UserError

T5_PARTS = ("text_encoder_3", "tokenizer_3")


class SD3Backbone(PipelineBackbone):
    """`StableDiffusion3Pipeline`. Latents are the VAE's, `[C, H/8, W/8]`, shifted and scaled; the transformer packs them itself.

    Args:
        pretrained, resolution: see `PipelineBackbone`.
        use_t5: load the third text encoder; without it its part of the prompt is zeros, as in diffusers.
        max_sequence_length: how many T5 tokens (or zeros) a prompt has, after CLIP's 77. 128 are what the published
            checkpoints are trained and drawn with, the empty prompt too (METHOD section 0.1); the pipeline's own default is 256.
        options: see `PipelineBackbone` (the command line lists them here too).
    """

    lora_targets = [
        f"attn.{name}"
        for name in (
            "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        )
    ]  # fmt: skip
    pipeline_class = StableDiffusion3Pipeline
    transformer_class = SD3Transformer2DModel
    block_classes = (JointTransformerBlock,)
    dynamic_shifting = False
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", *T5_PARTS)

    def __init__(
        self, pretrained: str, resolution: int, use_t5: bool = True, max_sequence_length: int = 128, **options: Any
    ) -> None:
        super().__init__(pretrained, resolution, max_sequence_length, **options)
        self.use_t5 = use_t5

    def check(self) -> None:
        super().check()
        if self.scheduler_config.use_dynamic_shifting:
            raise UserError(
                f"{self.pretrained}: its scheduler has use_dynamic_shifting, which the SD3 family does not use"
            )

    def _frozen(self, transformer: nn.Module) -> nn.Module:
        fuse_rms_norms(transformer)
        return super()._frozen(transformer)

    def unused_encoders(self) -> tuple[str, ...]:
        return () if self.use_t5 else T5_PARTS

    @property
    def text_tokens(self) -> int:
        """CLIP's come before T5's."""
        return self.read_config("text_encoder")["max_position_embeddings"] + self.max_sequence_length

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning(embeds, pooled)

    def latent_shape(self) -> tuple[int, ...]:
        side = self.resolution // self.vae_scale_factor
        return (self.loaded.transformer.config.in_channels, side, side)

    def sigmas(self, steps: Sequence[float]) -> tuple[float, ...]:
        config = self.scheduler_config
        shifted = shift_sigmas(steps, shift=config.shift, num_train_timesteps=config.num_train_timesteps)
        return (*shifted, 0.0)

    def pipeline_sigmas(self, count: int) -> tuple[float, ...]:
        """The pipeline leaves it to the scheduler, whose last level is not that of evenly spaced steps."""
        scheduler = type(self.loaded.scheduler).from_config(self.loaded.scheduler.config)
        scheduler.set_timesteps(count)
        return tuple(scheduler.sigmas.tolist())

    def velocity(self, transformer: nn.Module, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.pooled is not None
        return transformer(
            hidden_states=latents.to(self.dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
            return_dict=False,
        )[0].float()

    def to_vae_latents(self, latents: Tensor) -> Tensor:
        config = self.loaded.vae.config
        return latents / config.scaling_factor + config.shift_factor

    def check_resolution(self) -> None:
        transformer = self.read_config("transformer")
        multiple = self.vae_scale_factor * transformer["patch_size"]
        largest = transformer["pos_embed_max_size"] * multiple
        if self.resolution % multiple or not 0 < self.resolution <= largest:
            rule = f"VAE factor x patch size) and at most {largest} (position embeddings"
            raise unrepresentable(self.pretrained, self.resolution, multiple, rule)
