"""What all families have in common: a diffusers pipeline in parts."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rtdmd_lightning.errors import UserError
from rtdmd_lightning.models.base import Backbone


class PipelineBackbone(Backbone):
    """A backbone made of a diffusers pipeline, loaded whole.

    Args:
        pretrained: a diffusers folder or a hub id.
        resolution: height and width of the images, in pixels.
        max_sequence_length: how many tokens of text a prompt has, padding included.
        dtype: of the frozen weights. Adapters are float32 whatever it is.
        gradient_checkpointing: recompute the blocks' activations in the backward pass.
    """

    encoders: ClassVar[tuple[str, ...]]
    """The pipeline's parts that read prompts: text encoders, then tokenizers."""

    def __init__(
        self,
        pretrained: str,
        resolution: int,
        max_sequence_length: int = 512,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        gradient_checkpointing: bool = False,
    ) -> None:
        self.pretrained = pretrained
        self.resolution = resolution
        self.max_sequence_length = max_sequence_length
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        self.gradient_checkpointing = gradient_checkpointing
        self.pipeline: Any = None

    def load(self) -> nn.Module:
        unused = self.unused_encoders()
        wanted = [part for part in self.encoders if part not in unused]
        check_folder(self.pretrained, ["transformer", "vae", "scheduler", *wanted])
        try:
            self.pipeline = self.pipeline_class.from_pretrained(
                self.pretrained, dtype=self.dtype, **dict.fromkeys(unused)
            )
        except OSError as error:
            raise UserError(f"cannot load the base model {self.pretrained!r}: {error}") from error
        for part in self._frozen_parts():
            part.requires_grad_(False).eval()
        self.pipeline.vae.to(torch.float32)  # decoded images, and reward gradients through them, are float32
        self.check_resolution()
        return self._frozen(self.pipeline.transformer)

    def to(self, device: torch.device) -> None:
        for part in self._frozen_parts():
            part.to(device)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.loaded.vae.decode(self.to_vae_latents(latents.float()), return_dict=False)[0] / 2 + 0.5

    @abstractmethod
    def to_vae_latents(self, latents: Tensor) -> Tensor:
        """Latents `[B, ...]` to what the VAE's decoder takes: unpacked, and in its own scale."""

    @abstractmethod
    def check_resolution(self) -> None:
        """Raises UserError for a resolution that the loaded pipeline cannot represent."""

    def unused_encoders(self) -> tuple[str, ...]:
        """Of `encoders`, those that the options leave out; they are not loaded."""
        return ()

    def unrepresentable(self, multiple: int, rule: str) -> UserError:
        return UserError(
            f"resolution {self.resolution} cannot be represented by {self.pretrained}: it must be a positive multiple of "
            f"{multiple} ({rule})"
        )

    @property
    def loaded(self) -> Any:
        assert self.pipeline is not None, "load() comes first"
        return self.pipeline

    def _frozen(self, transformer: nn.Module) -> nn.Module:
        transformer.requires_grad_(False).eval()
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()  # type: ignore[operator]
        return transformer

    def _frozen_parts(self) -> list[nn.Module]:
        parts = (self.loaded.components[name] for name in ("vae", *self.encoders))
        return [part for part in parts if isinstance(part, nn.Module)]


def check_folder(pretrained: str, parts: list[str]) -> None:
    """Raises UserError for what is neither a hub id nor a diffusers folder with these parts."""
    folder = Path(pretrained)
    if not folder.is_dir():
        if pretrained.startswith(("/", ".")) or pretrained.count("/") != 1:
            raise UserError(f"the base model folder {folder} does not exist")
        return  # a hub id
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"the base model folder {folder} has no model_index.json; it should be a diffusers pipeline")
    listed = json.loads(index.read_text())
    missing = [part for part in parts if part not in listed or not (folder / part).is_dir()]
    if missing:
        raise UserError(f"the base model folder {folder} lacks {', '.join(missing)}")
