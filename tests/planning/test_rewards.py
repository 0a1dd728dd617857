"""Rewards without their weights."""

import pytest
import torch

from rtdmd_lightning.planning.fake_device import faked
from rtdmd_lightning.planning.rewards import StandIn, reward_bytes, stand_ins
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.imagereward import ImageRewardReward
from rtdmd_lightning.rewards.mixture import RewardMixture


@pytest.mark.parametrize(("chosen", "expected"), [(None, ["clipscore"]), (["imagereward"], ["imagereward"])])
def test_the_same_rewards_are_back_propagated(chosen, expected):
    rewards = RewardMixture([ClipScoreReward(), ImageRewardReward()], {"clipscore": 1.0, "imagereward": 1.0}, chosen)
    with faked():
        assert stand_ins(rewards).differentiable == expected


def test_towers_have_the_dtype_of_their_rewards():
    """A gradient reaches the images in float32; the CLIP of ImageReward has no dtype to choose."""
    single, half = (
        RewardMixture([ClipScoreReward(), ImageRewardReward()], {"clipscore": 1.0, "imagereward": 1.0}, dtype=dtype)
        for dtype in (None, "float16")
    )
    sizes = [reward_bytes(reward) for mixture in (single, half) for reward in mixture.rewards.values()]
    assert sizes == [sizes[0], sizes[0], sizes[0] // 2, sizes[0]]
    with faked():
        tower = stand_ins(half).rewards["clipscore"]
        assert isinstance(tower, StandIn)
        assert {parameter.dtype for parameter in tower.networks()[0].parameters()} == {torch.float16}
        images = torch.zeros(1, 3, 64, 64, requires_grad=True)
        scores = tower.score(images, [""], [{}])
        scores.sum().backward()
        assert images.grad is not None and scores.dtype == images.grad.dtype == torch.float32
