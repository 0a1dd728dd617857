"""What a callback asks of the module that is trained: as little as it needs, so that any algorithm can have it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import Roles


@runtime_checkable
class HasRewards(Protocol):
    """It is trained on rewards."""

    rewards: RewardMixture


class Generates(Protocol):
    """It draws images with the student as it is."""

    @property
    def device(self) -> torch.device: ...

    def generate(self, prompts: list[str], indices: Sequence[int], *, seed: int) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1]."""
        ...


class HasRoles(Protocol):
    """Its student is a role of a run: an adapter on a base, or a transformer of its own."""

    roles: Roles
    lora: LoraSettings
    backbone: Backbone
