"""What the modules ask of a backbone family. One file a family implements it; nothing else knows a family's name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rtdmd_lightning.models.quantization import Quantization
from rtdmd_lightning.objectives import evenly_spaced, guided_velocity
from rtdmd_lightning.sampling.structures import Conditioning

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Those that weights and states may have, by their names in a config."""

Velocity = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""Latents `[B, ...]` at levels `[B]` with their conditioning to their velocity: one forward pass in some role."""


class Backbone(ABC):
    """A text-to-image flow model from a diffusers folder or hub id.

    Making one is cheap and touches no file (configs are parsed and instantiated everywhere); `load` reads the weights. The
    transformer is handed over to the LightningModule, which trains adapters in it; autoencoder and text encoders stay here,
    frozen, because no checkpoint, optimizer or sharding strategy should ever see them.
    """

    lora_targets: ClassVar[list[str]]
    """Linear layers that get adapters, matched as suffixes of their module path."""

    pipeline_class: ClassVar[Any]
    """The family's diffusers pipeline: it writes adapters in the form that its own `load_lora_weights` reads."""

    transformer_class: ClassVar[Any]
    """The pipeline's transformer."""

    block_classes: ClassVar[tuple[type[nn.Module], ...]]
    """The transformer's repeated blocks: the units of FSDP2 sharding."""

    dtype: torch.dtype
    """Of the transformer's weights."""

    embedding_cache: str | None = None
    """A folder in which prompts' embeddings are kept on disk."""

    embeddings_on_device: int = 256
    """MiB of prompts' embeddings that stay in an accelerator's memory."""

    text_encoders: bool = True
    """Whether prompts that the cache lacks can be encoded."""

    quantization: Quantization = "none"
    """What the frozen weights of the transformers' blocks are kept in."""

    offloaded: tuple[str, ...] = ()
    """Of `text_encoders` and `vae` those that lie in CPU memory while they are not used."""

    encoded_at_once: int | None = None
    """How many prompts the text encoders see in one pass; None: all that they are given."""

    reads_weights: bool = True
    """Whether transformers are read with their weights; otherwise these are `without_weights`, and wait for another process's
    (`broadcast.py`)."""

    @abstractmethod
    def check(self) -> None:
        """Raises UserError for what `load` would refuse, as far as it can be told without reading weights."""

    def check_teacher(self) -> None:
        """Raises UserError for weights that draw images but cannot teach. Training asks, drawing does not."""
        return

    @abstractmethod
    def load(self) -> nn.Module:
        """Read the weights and return the frozen transformer. Raises UserError for a folder that lacks a part."""

    def load_generator_base(self) -> nn.Module | None:
        """The frozen transformer that the generator and its EMA start from, where it is not the teacher's."""
        return None

    @abstractmethod
    def check_transformer(self, pretrained: str) -> None:
        """Raises UserError for a folder whose transformer is not of the shape of this one's; reads configs only."""

    @abstractmethod
    def load_transformer(self, pretrained: str | None = None) -> nn.Module:
        """Read a transformer once more, or that of another folder or hub id. Raises UserError as `load` does."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move autoencoder and text encoders; of those that are `offloaded` it is where they will work."""

    @abstractmethod
    def at_work(self, part: str) -> AbstractContextManager[None]:
        """`text_encoders` or `vae` on the device in the body; it matters where the part is `offloaded`."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """B prompts to their conditioning, on the device of the text encoders; no gradient."""

    @abstractmethod
    def blank_conditioning(self, count: int) -> Conditioning:
        """Zeros of the shapes and the dtype that `encode_prompts` gives for that many prompts; reads configs only."""

    @abstractmethod
    def encoder_identity(self) -> dict[str, Any]:
        """All that `encode_prompts` depends on besides the prompts, in what JSON can hold; reads no weights."""

    @abstractmethod
    def base_identity(self) -> dict[str, str]:
        """What the frozen weights that a run trains on can be told by: a digest of each part, which reads little of it."""

    @property
    def base_guidance_scale(self) -> float:
        """The guidance scale that the base alone draws with, unless another is asked for: 1, which is none.

        A family whose model takes the scale as an input overrides this. Reads configs only.
        """
        return 1.0

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """One sample's latent shape at the training resolution."""

    @abstractmethod
    def sigmas(self, steps: Sequence[float]) -> tuple[float, ...]:
        """Raw timesteps (1000 down to 0, exclusive) to shifted levels, with the final 0 (METHOD section 1)."""

    @property
    @abstractmethod
    def table_shift(self) -> float:
        """The shift `s` of the levels at which the base was trained (METHOD section 5.1); 1 leaves them as they are."""

    def pipeline_sigmas(self, count: int) -> tuple[float, ...]:
        """The levels that the family's diffusers pipeline itself uses for `count` steps, with the final 0."""
        return self.sigmas(evenly_spaced(count, start=1000))

    @abstractmethod
    def velocity(self, transformer: nn.Module, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity of latents `[B, ...]` at levels `[B]`: one forward pass, float32 out."""

    def guided_velocity(
        self,
        velocity: Velocity,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        empty: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        """The teacher's velocity with guidance; `empty` is the conditioning of the one prompt "".

        Classifier-free guidance: both branches in one forward pass of 2B, one of B at scale 1. A family whose model takes the
        scale as an input overrides this.
        """
        if guidance_scale == 1:
            return velocity(latents, sigma, conditioning)
        branches = Conditioning.cat([conditioning, empty.expand(len(latents))])
        both = velocity(torch.cat([latents, latents]), sigma.repeat(2), branches)
        conditional, unconditional = both.chunk(2)
        return guided_velocity(conditional, unconditional, guidance_scale=guidance_scale)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B, ...]` to images `[B, 3, H, W]` in [0, 1] (unclamped: gradients pass)."""
