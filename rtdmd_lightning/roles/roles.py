"""Generator, fake score, teacher and average: what is asked of the roles of a run, however their weights are kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.sampling.structures import Conditioning

GENERATOR, FAKE_SCORE, TEACHER, EMA = "generator", "fake_score", "teacher", "generator_ema"
COLD_START, COLD_START_FAKE = "cold_start", "cold_start_fake_score"

CPU = torch.device("cpu")

Stacks = Mapping[str, tuple[str, ...]]
"""By role what is put on the base in it, the lowest first; `()` is the bare base."""


class Roles(nn.Module, ABC):
    """Who runs with which weights: adapters on one base (`LoraRoles`), or transformers of their own (`WholeRoles`).

    Args:
        backbone: the model family.
        stacks: the run's roles. What no stack names is not built.
        trained: the roles that an optimizer trains.
    """

    own: tuple[str, ...]
    """The roles whose weights are new, trained or averaged: all that a checkpoint holds."""

    def __init__(self, backbone: Backbone, stacks: Stacks, trained: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.stacks = dict(stacks)
        self.trained = tuple(trained)

    @property
    @abstractmethod
    def bases(self) -> list[nn.Module]:
        """All transformers that there are."""

    @abstractmethod
    def base_of(self, role: str) -> nn.Module:
        """The transformer that runs in a role."""

    @abstractmethod
    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """Of one of `own`."""

    @abstractmethod
    def own_state_dict(self, name: str) -> dict[str, Tensor]:
        """The weights of one of `own`, on the CPU; where they are sharded, every rank must ask."""

    @abstractmethod
    def role(self, name: str) -> AbstractContextManager[None]:
        """Run the body in a role. A loss is back-propagated inside the role that made it: gradient checkpointing computes the
        forward pass again, with whatever adapters are active then."""

    def velocity(self, role: str, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning) -> Tensor:
        """One forward pass in a role; `sigma` is a number or `[B]`."""
        with self.role(role):
            return self.backbone.velocity(self.base_of(role), latents, _levels(sigma, latents), conditioning)

    @torch.no_grad()
    def teacher_velocity(
        self,
        latents: Tensor,
        sigma: Tensor | float,
        conditioning: Conditioning,
        empty: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        """The frozen base with guidance, as its family does it: classifier-free, or by an input of the model."""
        velocity = partial(self.velocity, TEACHER)
        levels = _levels(sigma, latents)
        return self.backbone.guided_velocity(velocity, latents, levels, conditioning, empty, guidance_scale)

    @torch.no_grad()
    def move_average(self, kept: float, name: str = EMA) -> None:
        """`average <- kept·average + (1 - kept)·generator`, over all that the generator trains."""
        for average, parameter in zip(self.parameters_of(name), self.parameters_of(GENERATOR), strict=True):
            average.lerp_(parameter, 1 - kept)


def _levels(sigma: Tensor | float, latents: Tensor) -> Tensor:
    """`[B]` float32 on the latents' device; a number is filled in there, not copied."""
    if isinstance(sigma, Tensor):
        return sigma.to(latents.device, torch.float32).expand(len(latents))
    return torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
