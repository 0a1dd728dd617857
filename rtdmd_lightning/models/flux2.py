"""FLUX.2-klein: Qwen3 text encoder, batch-normalised latents, a generator that may start from other weights than its teacher."""

from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from torch import Tensor, nn

from rtdmd_lightning.models.folder import read_config
from rtdmd_lightning.models.packed import PackedBackbone
from rtdmd_lightning.objectives import flux2_mu
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import UserError

MOST_SINGLE_BLOCKS = 48  # FLUX.2-dev's; klein has 20 or 24


class Flux2Backbone(PackedBackbone):
    """`Flux2KleinPipeline`. Latents are packed as the transformer takes them: `[tokens, 4 * C]`, a token for 2x2 of the VAE's.

    Args:
        pretrained: the undistilled klein-base, for teacher and fake score; autoencoder and text encoder are its too.
        resolution: see `PipelineBackbone`.
        generator_pretrained: the distilled klein that the generator and its EMA start from: a second transformer in memory.
            Without it they start from `pretrained`.
        options: see `PipelineBackbone` (the command line lists them here too).
    """

    # `attn.to_out` is a linear layer in single blocks, a list that starts with one in double blocks. No suffix tells the two
    # apart, so those of single blocks are named in full; a name that a model lacks matches nothing.
    lora_targets = [
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj",
        *(f"single_transformer_blocks.{block}.attn.to_out" for block in range(MOST_SINGLE_BLOCKS)),
    ]  # fmt: skip
    pipeline_class = Flux2KleinPipeline
    transformer_class = Flux2Transformer2DModel
    block_classes = (Flux2TransformerBlock, Flux2SingleTransformerBlock)
    encoders = ("text_encoder", "tokenizer")

    def __init__(
        self, pretrained: str, resolution: int, generator_pretrained: str | None = None, **options: Any
    ) -> None:
        super().__init__(pretrained, resolution, **options)
        self.generator_pretrained = generator_pretrained

    def check(self) -> None:
        super().check()
        if self.generator_pretrained is not None:
            self.source.check(self.generator_pretrained, ["transformer"])

    def check_teacher(self) -> None:
        if read_config(Flux2KleinPipeline, self.pretrained).get("is_distilled"):
            raise UserError(
                f"{self.pretrained} is the distilled klein, which cannot teach with guidance; set pretrained to klein-base and "
                "generator_pretrained to the distilled one"
            )

    def load_generator_base(self) -> nn.Module | None:
        if self.generator_pretrained is None:
            return None
        return self.load_transformer(self.generator_pretrained)

    def base_identity(self) -> dict[str, str]:
        if self.generator_pretrained is None:
            return super().base_identity()
        generators = self.source.digest(self.generator_pretrained, "transformer")
        return super().base_identity() | {"generator's base": generators}

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(embeds)

    def dynamic_mu(self, steps: int) -> float:
        return flux2_mu(self.tokens, steps)

    def velocity(self, transformer: nn.Module, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        # Positions are the same for all samples, and the transformer reads the first sample's only.
        tokens = conditioning.embeds.shape[1]
        blank = torch.empty(1, tokens, 0)
        text_ids = self.positions(f"{tokens} text", latents.device, lambda: self.loaded._prepare_text_ids(blank))
        return transformer(
            hidden_states=latents.to(self.dtype),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            txt_ids=text_ids,
            img_ids=self._image_ids(latents.device),
            return_dict=False,
        )[0].float()

    def to_vae_latents(self, latents: Tensor) -> Tensor:
        pipeline, vae = self.loaded, self.loaded.vae
        ids = self._image_ids(latents.device).expand(len(latents), -1, -1)
        grid = pipeline._unpack_latents_with_ids(latents, ids, self.side, self.side)
        # The pipeline undoes the VAE's batch norm inside its __call__ and exposes no function for it.
        mean, variance = (statistic.view(1, -1, 1, 1) for statistic in (vae.bn.running_mean, vae.bn.running_var))
        return pipeline._unpatchify_latents(grid * torch.sqrt(variance + vae.config.batch_norm_eps) + mean)

    def _image_ids(self, device: torch.device) -> Tensor:
        blank = torch.empty(1, 1, self.side, self.side)
        return self.positions("image", device, lambda: self.loaded._prepare_latent_ids(blank))
