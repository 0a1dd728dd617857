"""What FLUX.1 and FLUX.2 share: latents packed into tokens of 2x2, and a time shift that depends on how many there are."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.models.folder import unrepresentable
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.objectives import dynamic_shift_sigmas, shift_sigmas
from rtdmd_lightning.utils.errors import UserError, first_line


class PackedBackbone(PipelineBackbone):
    """A family whose transformer takes `[B, tokens, channels]` and is fed the level itself: it multiplies by 1000 inside.

    It does so in the precision of the weights: a bfloat16 model sees its level rounded to 8 bits, in diffusers' pipelines and
    here alike. The levels of the schedules, transitions and targets are not rounded.

    Args:
        pretrained, resolution: see `PipelineBackbone`.
        attention_backend: one of diffusers' (`_native_cudnn`, `_native_flash`, `_flash_3_hub`, …), in all forward passes of the
            run; by default torch chooses its kernel.
        options: see `PipelineBackbone`.
    """

    dynamic_shifting = True

    def __init__(self, pretrained: str, resolution: int, attention_backend: str | None = None, **options: Any) -> None:
        super().__init__(pretrained, resolution, **options)
        self.attention_backend = attention_backend
        self._positions: dict[tuple[str, torch.device], Tensor] = {}

    def check(self) -> None:
        """Also refuses an attention backend that is unknown or not installed."""
        super().check()
        if self.attention_backend is not None:
            self._set_attention(self.outline())

    def _frozen(self, transformer: nn.Module) -> nn.Module:
        if self.attention_backend is not None:
            self._set_attention(transformer)
        return super()._frozen(transformer)

    def _set_attention(self, transformer: Any) -> None:
        try:
            transformer.set_attention_backend(self.attention_backend)
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(
                f"the backbone's attention_backend {self.attention_backend} cannot be used: {first_line(error)}"
            ) from error

    def load(self) -> nn.Module:
        self._positions = {}  # those of the last time may be on tensors that are no more
        return super().load()

    def positions(self, of: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Position ids by what they are of. Pipelines make them on the CPU in every forward pass; here once a device."""
        key = of, device
        if key not in self._positions:
            self._positions[key] = make().to(device)
        return self._positions[key]

    @abstractmethod
    def dynamic_mu(self, steps: int) -> float:
        """The exponential shift's mu for a schedule of that many steps at the training resolution."""

    @property
    def side(self) -> int:
        """Tokens along an edge of the image."""
        return self.resolution // (2 * self.vae_scale_factor)

    @property
    def tokens(self) -> int:
        return self.side**2

    def latent_shape(self) -> tuple[int, ...]:
        return (self.tokens, self.loaded.transformer.config.in_channels)

    def sigmas(self, steps: Sequence[float]) -> tuple[float, ...]:
        """METHOD section 1; a scheduler without dynamic shifting (FLUX.1-schnell's) has a static shift instead."""
        config = self.scheduler_config
        if config.shift_terminal or (config.use_dynamic_shifting and config.time_shift_type != "exponential"):
            raise UserError(
                f"{self.pretrained}: its scheduler's shift_terminal or time_shift_type is not one of this family"
            )
        if config.use_dynamic_shifting:
            mu = self.dynamic_mu(len(steps))
            shifted = dynamic_shift_sigmas(steps, mu=mu, num_train_timesteps=config.num_train_timesteps)
        else:
            shifted = shift_sigmas(steps, shift=config.shift, num_train_timesteps=config.num_train_timesteps)
        return (*shifted, 0.0)

    def check_resolution(self) -> None:
        multiple = 2 * self.vae_scale_factor
        if self.resolution <= 0 or self.resolution % multiple:
            raise unrepresentable(self.pretrained, self.resolution, multiple, "VAE factor x patches of 2x2")
