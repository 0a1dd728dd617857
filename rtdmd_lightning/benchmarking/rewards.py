"""Rewards that need no weights: one without a network, and the published ones' networks with random numbers."""

import torch
from torch import Tensor

from rtdmd_lightning.benchmarking.networks import randomise
from rtdmd_lightning.planning.rewards import stand_ins
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardMixture


class Redness(Reward):
    """Red less green, in (-1, 1): every image has its own, and it has a gradient."""

    name = "redness"
    differentiable = True

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return (images[:, 0] - images[:, 1]).mean(dim=(1, 2)).tanh()


def small_rewards() -> RewardMixture:
    return RewardMixture([Redness()], {Redness.name: 1.0}, [Redness.name])


def random_rewards(rewards: RewardMixture, device: torch.device) -> RewardMixture:
    """Their networks in their real shapes, with random weights, on the device."""
    with device:
        mixture = stand_ins(rewards)
        for reward in mixture.rewards.values():
            for network in reward.networks():
                randomise(network)
    return mixture
