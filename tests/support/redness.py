"""A reward that notes which weights are in memory, and others whose scores are no numbers or no tensor."""

import weakref
from typing import ClassVar

import torch

from rtdmd_lightning.rewards.base import Reward


class RednessReward(Reward):
    """Mean of the red channel, on another reported scale; notes how many weights were in memory at every load."""

    name = "redness"
    differentiable = True
    reported_scale = 10.0
    in_memory: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    at_loads: ClassVar[list[int]] = []

    def load(self) -> None:
        self.at_loads.append(len(self.in_memory))
        self.weights = torch.nn.Linear(1, 1)
        self.in_memory.add(self.weights)

    def score(self, images, prompts, metadata):
        return images[:, 0].mean((1, 2))


class BrokenReward(RednessReward):
    def score(self, images, prompts, metadata):
        return images[:, 0].mean((1, 2)) / 0


class ListReward(RednessReward):
    def score(self, images, prompts, metadata):
        return images[:, 0].mean((1, 2)).tolist()
