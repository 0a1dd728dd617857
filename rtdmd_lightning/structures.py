"""The frozen dataclasses that travel between the parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What a backbone needs to know of B prompts: token embeddings `[B, N, D]` and pooled embeddings `[B, P]`."""

    embeds: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index) -> "Conditioning":
        return Conditioning(self.embeds[index], self.pooled[index])

    def to(self, device: torch.device) -> "Conditioning":
        return Conditioning(self.embeds.to(device), self.pooled.to(device))

    def expand(self, count: int) -> "Conditioning":
        """One prompt's conditioning for `count` samples."""
        assert len(self) == 1, f"only a single prompt can be expanded, this holds {len(self)}"
        return Conditioning(self.embeds.expand(count, -1, -1), self.pooled.expand(count, -1))

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        return Conditioning(torch.cat([part.embeds for part in parts]), torch.cat([part.pooled for part in parts]))


@dataclass(frozen=True)
class Trajectory:
    """A few-step rollout of B samples over the levels `sigmas` (K+1 of them where all K steps were executed).

    `states[k]` sits at `sigmas[k]`; `velocities[k]` and `noises[k]` made `states[k + 1]` of it (`noises[k]` is the fresh
    CPS noise z; the last step, to level 0, uses none of it). All tensors have the latents' shape `[B, ...]`, float32.
    """

    sigmas: tuple[float, ...]
    states: tuple[Tensor, ...]
    velocities: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]

    @property
    def samples(self) -> Tensor:
        """The last state."""
        return self.states[-1]

    def __getitem__(self, index) -> "Trajectory":
        """The trajectories of some of the samples."""
        states, velocities, noises = (
            tuple(tensor[index] for tensor in tensors) for tensors in (self.states, self.velocities, self.noises)
        )
        return Trajectory(self.sigmas, states, velocities, noises)


@dataclass(frozen=True)
class Subinterval:
    """Generated samples brought from their level up to another one (METHOD section 3.1).

    `start` at `sigma_start` (a number) was renoised with `noise` to `end` at `sigma_end` `[B]`.
    """

    start: Tensor
    sigma_start: float
    end: Tensor
    sigma_end: Tensor
    noise: Tensor
