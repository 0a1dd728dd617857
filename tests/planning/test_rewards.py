"""Rewards without their weights."""

import pytest

from rtdmd_lightning.planning.blocks import few
from rtdmd_lightning.planning.fake_device import faked
from rtdmd_lightning.planning.rewards import stand_ins, tower_kinds
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.imagereward import ImageRewardReward
from rtdmd_lightning.rewards.mixture import RewardMixture


@pytest.mark.parametrize(("chosen", "expected"), [(None, ["clipscore"]), (["imagereward"], ["imagereward"])])
def test_the_same_rewards_are_back_propagated(chosen, expected):
    rewards = RewardMixture([ClipScoreReward(), ImageRewardReward()], {"clipscore": 1.0, "imagereward": 1.0}, chosen)
    with faked():
        assert stand_ins(rewards, few(tower_kinds(rewards))[0]).differentiable == expected
