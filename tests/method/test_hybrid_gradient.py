"""The pieces of the hybrid gradient that stand beside SubGRPO's: the leave-one-out baseline and the reward's hinge."""

import pytest
import torch
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import normal

PROMPTS = ["cat", "dog", "cat", "dog", "cat"]


def test_each_sample_is_compared_with_the_others_of_its_group():
    reward = torch.tensor([1.0, 10.0, 2.0, 30.0, 6.0])
    advantages = objectives.leave_one_out_advantages(reward, PROMPTS)
    assert advantages.dtype == torch.float64
    assert advantages.tolist() == pytest.approx([1 - 4, 10 - 30, 2 - 3.5, 30 - 10, 6 - 1.5])


def test_the_baseline_does_not_move_with_the_samples_own_reward():
    """Its derivative with respect to its own reward is 1: that independence is what makes it unbiased."""
    jacobian = torch.autograd.functional.jacobian(
        lambda reward: objectives.leave_one_out_advantages(reward, PROMPTS), normal(5)
    )
    assert_close(jacobian.diagonal(), torch.ones(5, dtype=torch.float64))


def test_equal_rewards_leave_exact_zeros():
    advantages = objectives.leave_one_out_advantages(torch.full((5,), 0.1), PROMPTS)
    assert torch.equal(advantages, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("reward", "prompts", "match"),
    [
        (torch.zeros(3), ["cat", "cat", "owl"], "sample each prompt twice or more"),
        (torch.zeros(2, 1), ["cat", "cat"], "2 prompts"),
    ],
    ids=["alone", "shape"],
)
def test_what_cannot_be_compared_is_refused(reward, prompts, match):
    with pytest.raises(ValueError, match=match):
        objectives.leave_one_out_advantages(reward, prompts)


def test_the_hinge_pulls_every_sample_below_the_ceiling_alike():
    """3 is the ceiling unless told otherwise; half precision is reckoned in float32."""
    reward = torch.tensor([0.5, 2.0, 3.5, -1.0], dtype=torch.float64, requires_grad=True)
    loss = objectives.reward_hinge_loss(reward)
    assert loss.item() == pytest.approx((2.5 + 1.0 + 0.0 + 4.0) / 4)
    (gradient,) = torch.autograd.grad(loss, reward)
    assert gradient.tolist() == [-0.25, -0.25, 0.0, -0.25]
    assert objectives.reward_hinge_loss(reward, ceiling=1.0).item() == pytest.approx((0.5 + 2.0) / 4)
    assert objectives.reward_hinge_loss(reward.detach().bfloat16()).dtype == torch.float32
