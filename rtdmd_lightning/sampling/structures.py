"""The frozen dataclasses that travel between the parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd_lightning.objectives import clean_from_velocity


@dataclass(frozen=True)
class Conditioning:
    """What a backbone needs to know of B prompts.

    Token embeddings `[B, N, D]`; pooled embeddings `[B, P]` where the family has them; the guidance input `[B]` where the
    model was distilled with one and another than the backbone's own is wanted.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    guidance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index) -> "Conditioning":
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> "Conditioning":
        return self._map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def expand(self, count: int) -> "Conditioning":
        """One prompt's conditioning for `count` samples."""
        assert len(self) == 1, f"only a single prompt can be expanded, this holds {len(self)}"
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """The prompts of all parts, which must agree in what they have."""
        return Conditioning(
            torch.cat([part.embeds for part in parts]),
            _cat_optional([part.pooled for part in parts]),
            _cat_optional([part.guidance for part in parts]),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        pooled, guidance = (None if part is None else function(part) for part in (self.pooled, self.guidance))
        return Conditioning(function(self.embeds), pooled, guidance)


def _cat_optional(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    assert len(present) in (0, len(parts)), "some of the parts lack what the others have"
    return torch.cat(present) if present else None


@dataclass(frozen=True)
class ExecutedStep:
    """One sampler step of B samples: `velocity` at `state` and the fresh noise made `next_state`, at the lower level."""

    sigma: float
    sigma_next: float
    state: Tensor
    velocity: Tensor
    noise: Tensor
    next_state: Tensor

    @property
    def clean(self) -> Tensor:
        """The step's prediction of the clean samples."""
        return clean_from_velocity(self.state, self.velocity, sigma=self.sigma)

    def to(self, device: torch.device) -> "ExecutedStep":
        tensors = (self.state, self.velocity, self.noise, self.next_state)
        return ExecutedStep(self.sigma, self.sigma_next, *(tensor.to(device) for tensor in tensors))


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

    def step(self, number: int) -> ExecutedStep:
        """The step from `states[number]` to the next one."""
        return ExecutedStep(
            self.sigmas[number],
            self.sigmas[number + 1],
            self.states[number],
            self.velocities[number],
            self.noises[number],
            self.states[number + 1],
        )

    def __getitem__(self, index) -> "Trajectory":
        """The trajectories of some of the samples."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> "Trajectory":
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Trajectory":
        states, velocities, noises = (
            tuple(function(tensor) for tensor in tensors) for tensors in (self.states, self.velocities, self.noises)
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
