"""What all families have in common: a diffusers pipeline in parts."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rtdmd_lightning.models.base import DTYPES, Backbone
from rtdmd_lightning.models.identity import identity
from rtdmd_lightning.models.placement import TEXT_ENCODERS, VAE, Placement
from rtdmd_lightning.models.quantization import Quantization, check_installed
from rtdmd_lightning.models.source import OtherTransformer, Pretrained, Source
from rtdmd_lightning.models.transformer import awaited_transformer, check_alike, read_transformer
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import require

_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # no dropout: nothing is drawn


class PipelineBackbone(Backbone):
    """A backbone made of a diffusers pipeline, loaded whole.

    Args:
        pretrained: a diffusers folder or a hub id.
        resolution: height and width of the images, in pixels.
        max_sequence_length: tokens of a prompt, padding included, at most the family's `longest_text`. No family masks its
            padding in the transformer, so the number is part of the conditioning (METHOD section 0.1).
        transformer_from: a folder whose `transformer/` takes the place of `pretrained`'s: the result of `model.trainable=full`.
        dtype: of the frozen weights, and of whole transformers that train. Adapters have a dtype of their own.
        quantization: what the linear layers of the transformer's blocks are kept in; they compute in `dtype`. Text encoders are
            not quantised: an embedding cache leaves them out altogether.
        vae_dtype: of the autoencoder, which rewards are back-propagated through. Images are float32 whatever it is.
        gradient_checkpointing: recompute the blocks' activations in the backward pass.
        vae_gradient_checkpointing: the same for the autoencoder, where rewards are back-propagated through it.
        channels_last_vae: keep the autoencoder's weights in the memory format that convolutions of some GPUs are faster in.
        embedding_cache: a folder where prompts' embeddings are kept on disk. Text encoders are then loaded only when a prompt
            is not there; `rtdmd embed` fills it ahead of time.
        text_encoders: false never loads them; a prompt that the cache lacks is an error.
        embeddings_on_device: MiB of the embeddings used last that stay in a GPU's memory; SD3 and FLUX take 2 to 13 each.
    """

    encoders: ClassVar[tuple[str, ...]]
    """The pipeline's parts that read prompts: text encoders, then tokenizers."""

    dynamic_shifting: ClassVar[bool]
    """Whether the family's published schedulers shift the levels by the size of the image."""

    longest_text: ClassVar[int] = 512
    """The largest `max_sequence_length`. SD3's and FLUX.1's pipelines refuse more; FLUX.2's names it as its tokenizer's limit."""

    def __init__(
        self,
        pretrained: str,
        resolution: int,
        max_sequence_length: int = 512,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        vae_dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        vae_gradient_checkpointing: bool = False,
        channels_last_vae: bool = False,
        embedding_cache: str | None = None,
        text_encoders: bool = True,
        embeddings_on_device: int = 256,
        quantization: Quantization = "none",
        transformer_from: str | None = None,
    ) -> None:
        require(
            text_encoders or embedding_cache is not None,
            "a backbone with text_encoders=false needs an embedding_cache, which has the prompts' embeddings",
        )
        require(
            1 <= max_sequence_length <= self.longest_text,
            f"the backbone's max_sequence_length must lie between 1 and {self.longest_text}, not {max_sequence_length}",
        )
        require(
            embeddings_on_device >= 0,
            f"the backbone's embeddings_on_device must be at least 0, not {embeddings_on_device}",
        )
        self.pretrained, self.resolution = pretrained, resolution
        self.max_sequence_length, self.quantization = max_sequence_length, quantization
        self.dtype, self.vae_dtype = DTYPES[dtype], DTYPES[vae_dtype]
        self.gradient_checkpointing = gradient_checkpointing
        self.vae_gradient_checkpointing, self.channels_last_vae = vae_gradient_checkpointing, channels_last_vae
        self.embedding_cache, self.text_encoders = embedding_cache, text_encoders
        self.embeddings_on_device = embeddings_on_device
        self.source: Source = Pretrained()
        if transformer_from is not None:
            self.source = OtherTransformer(self.transformer_class, pretrained, transformer_from)
        self.pipeline: Any = None
        self._text_pipeline: Any = None  # the one whose text encoders are loaded
        self._placement = Placement()

    def check(self) -> None:
        check_installed(self.quantization)
        self._check_folder()
        self.check_resolution()

    def load(self) -> nn.Module:
        self.check()
        given: dict[str, Any] = {}
        if self.embedding_cache is not None:
            given = dict.fromkeys(part for part in self.encoders if part.startswith("text_encoder"))
        if not self.reads_weights:
            given["transformer"] = awaited_transformer(self, self.pretrained, given)
        self.pipeline = self._open(**given)
        if self.embedding_cache is None:
            self._text_pipeline = self.pipeline
        if self.channels_last_vae:
            self.pipeline.vae.to(memory_format=torch.channels_last)
        if self.vae_gradient_checkpointing:
            self.pipeline.vae.enable_gradient_checkpointing(_recompute)
        return self._frozen(self.pipeline.transformer)

    def check_transformer(self, pretrained: str) -> None:
        check_alike(self, pretrained)

    def load_transformer(self, pretrained: str | None = None) -> nn.Module:
        return self._frozen(read_transformer(self, pretrained or self.pretrained))

    def to(self, device: torch.device) -> None:
        for part in (TEXT_ENCODERS, VAE):
            self._move(part, device)

    def at_work(self, part: str) -> AbstractContextManager[None]:
        return self._placement.at_work(part)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """As the pipeline does it. Autocast is off: an embedding does not depend on the precision of the training."""
        assert self.text_encoders, "there are no text encoders"
        if self._text_pipeline is None:
            self._check_folder()
            self._text_pipeline = self._open(transformer=self.outline(), vae=None, scheduler=None)
            self._move(TEXT_ENCODERS, self._placement.device)
        size = self.encoded_at_once or len(prompts)
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        with self.at_work(TEXT_ENCODERS), torch.autocast(self._placement.device.type, enabled=False):
            return Conditioning.cat([self.encode_with(self._text_pipeline, part) for part in parts])

    @abstractmethod
    def encode_with(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        """B prompts to their conditioning by a pipeline of this family, of which only encoders and tokenizers are loaded."""

    @property
    def text_tokens(self) -> int:
        """How many tokens of text condition the transformer; reads configs only."""
        return self.max_sequence_length

    def blank_conditioning(self, count: int) -> Conditioning:
        config = self.read_config("transformer")
        embeds = torch.zeros(count, self.text_tokens, config["joint_attention_dim"], dtype=self.dtype)
        if "pooled_projection_dim" not in config:
            return Conditioning(embeds)
        return Conditioning(embeds, torch.zeros(count, config["pooled_projection_dim"], dtype=self.dtype))

    def encoder_identity(self) -> dict[str, Any]:
        self._check_folder()
        return {
            "pipeline": self.pipeline_class.__name__,
            "weights": identity(self.pretrained, self._used_encoders()),
            "dtype": str(self.dtype),
            "max_sequence_length": self.max_sequence_length,
        }

    def base_identity(self) -> dict[str, str]:
        return {f"base's {part}": self.source.digest(self.pretrained, part) for part in ("transformer", "vae")}

    def decode(self, latents: Tensor) -> Tensor:
        with self.at_work(VAE), torch.autocast(latents.device.type, enabled=False):
            scaled = self.to_vae_latents(latents.float()).to(self.vae_dtype)
            return self.loaded.vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5

    @abstractmethod
    def to_vae_latents(self, latents: Tensor) -> Tensor:
        """Latents `[B, ...]` to what the VAE's decoder takes: unpacked, and in its own scale."""

    @abstractmethod
    def check_resolution(self) -> None:
        """Raises UserError for a resolution that the pipeline cannot represent; reads configs only."""

    @cached_property
    def scheduler_config(self) -> Any:
        """The scheduler's, its class's defaults filled in."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.read_config("scheduler")).config

    @property
    def table_shift(self) -> float:
        """The static shift of the scheduler's training table; a scheduler that shifts by resolution leaves its table alone."""
        config = self.scheduler_config
        return 1.0 if config.use_dynamic_shifting else config.shift

    @cached_property
    def vae_scale_factor(self) -> int:
        """Pixels along an edge of what one latent stands for, as the pipelines have it."""
        return 2 ** (len(self.read_config("vae")["block_out_channels"]) - 1)

    def read_config(self, part: str) -> dict[str, Any]:
        """A part's config, without its weights."""
        readers = {"scheduler": FlowMatchEulerDiscreteScheduler, "vae": AutoencoderKL}
        return self.source.config(readers.get(part, self.transformer_class), self.pretrained, part)

    def unused_encoders(self) -> tuple[str, ...]:
        """Of `encoders`, those that the options leave out; they are not loaded."""
        return ()

    @property
    def loaded(self) -> Any:
        assert self.pipeline is not None, "load() comes first"
        return self.pipeline

    def _frozen(self, transformer: nn.Module) -> nn.Module:
        transformer.requires_grad_(False).eval()
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing(_recompute)  # type: ignore[operator]
        return transformer

    def _move(self, part: str, device: torch.device) -> None:
        """What is loaded of it."""
        pipeline, names = (self.pipeline, (VAE,)) if part == VAE else (self._text_pipeline, self.encoders)
        self._placement.move(part, pipeline, names, device, offloaded=part in self.offloaded)

    def _open(self, **given: Any) -> Any:
        """The pipeline, frozen; parts that are given, or that the options leave out, are not read."""
        given = dict.fromkeys(self.unused_encoders()) | given
        dtypes = {"default": self.dtype, "vae": self.vae_dtype}
        pipeline = self.source.pipeline(self.pipeline_class, self.pretrained, dtypes, given)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        return pipeline

    def _used_encoders(self) -> list[str]:
        return [part for part in self.encoders if part not in self.unused_encoders()]

    def _check_folder(self) -> None:
        self.source.check(self.pretrained, ["transformer", "vae", "scheduler", *self._used_encoders()])

    def outline(self, pretrained: str | None = None) -> nn.Module:
        """The transformer's shapes, which SD3's pipeline asks for when it encodes without T5."""
        config = self.source.config(self.transformer_class, pretrained or self.pretrained, "transformer")
        with torch.device("meta"):
            return self.transformer_class.from_config(config)
