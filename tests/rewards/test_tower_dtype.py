"""CLIP rewards in half precision rank images as in float32 does, and their gradients point where float32's do."""

import pytest
import torch
from scipy.stats import spearmanr

from rtdmd_lightning.rewards.aesthetic import AestheticReward
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.geneval import GenEvalReward
from rtdmd_lightning.rewards.hpsv2 import HPSv2Reward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.rewards.pickscore import PickScoreReward
from rtdmd_lightning.rewards.precision import in_precision
from rtdmd_lightning.shapes.dataset import sample_pairs
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY

TINY_CLIP = str(REPOSITORY / "checkpoints/tiny-clip")
HALF = ["bfloat16", "float16"]


def tiny_clip(dtype):
    reward = ClipScoreReward(TINY_CLIP, dtype=dtype)
    reward.to(torch.device("cpu"))
    return reward


@pytest.fixture(scope="module")
def rendered():
    """Pictures of the toy world; half of them under another picture's prompt, so that scores differ as in training."""
    images, prompts = sample_pairs(128, seed=5)
    return images / 255, prompts[:64] + prompts[65:] + prompts[64:65]


@pytest.fixture(scope="module")
def exact(rendered):
    images, prompts = rendered
    images = images.clone().requires_grad_()
    scores = tiny_clip("float32").score(images, prompts, [{}] * len(prompts))
    return scores.detach(), torch.autograd.grad(scores.sum(), images)[0]


# rewards/README.md states these.
@pytest.mark.parametrize(
    ("dtype", "correlation", "difference"), [("bfloat16", 0.995, 0.002), ("float16", 0.9995, 0.0003)]
)
def test_scores_agree_on_rendered_pictures(rendered, exact, dtype, correlation, difference):
    images, prompts = rendered
    reward = tiny_clip(dtype)
    scores = reward.score(images, prompts, [{}] * len(prompts))
    assert scores.dtype == torch.float32
    assert reward.networks()[0].visual_projection.weight.dtype == reward.dtype
    found = spearmanr(scores, exact[0]).statistic, float((scores - exact[0]).abs().max())
    print(dtype, found, float(exact[0].std()))
    assert found[0] > correlation and 0 < found[1] < difference


@pytest.mark.parametrize("weight", [1.0, 1e-9], ids=["plain", "as small as in training"])
@pytest.mark.parametrize("dtype", HALF)
def test_gradients_agree(rendered, exact, dtype, weight):
    """float16 itself has nothing below 6e-8."""
    images, prompts = rendered
    images = images.clone().requires_grad_()
    scores = tiny_clip(dtype).score(images, prompts, [{}] * len(prompts))
    (gradient,) = torch.autograd.grad(weight * scores.sum(), images)
    cosines = torch.cosine_similarity(gradient.flatten(1) / weight, exact[1].flatten(1))
    print(dtype, weight, float(cosines.min()), float(gradient.norm() / weight / exact[1].norm()))
    assert cosines.min() > 0.95
    assert float(gradient.norm() / weight) == pytest.approx(float(exact[1].norm()), rel=0.02)


def test_a_gradient_of_zero_stays_zero():
    inputs = torch.randn(2, 3, requires_grad=True)
    layer = torch.nn.Linear(3, 3).half().requires_grad_(False)
    (gradient,) = torch.autograd.grad(0 * in_precision(layer, inputs, torch.float16).sum(), inputs)
    assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize("reward", [ClipScoreReward, PickScoreReward, HPSv2Reward])
def test_an_unknown_dtype_is_refused_before_weights_are_looked_for(reward):
    with pytest.raises(UserError, match="dtype must be one of"):
        reward(dtype="int4")


def test_a_mixtures_dtype_is_that_of_every_reward_that_has_one_to_choose():
    rewards = [ClipScoreReward(TINY_CLIP), HPSv2Reward(dtype="bfloat16"), GenEvalReward(), AestheticReward()]
    mixture = RewardMixture(rewards, {reward.name: 1.0 for reward in rewards}, dtype="float16")
    assert [reward.dtype for reward in rewards] == [torch.float16, torch.float16, None, None]
    assert mixture.of_any_dtype == rewards[:2]
    rewards[0].to(torch.device("cpu"))
    assert rewards[0].networks()[0].visual_projection.weight.dtype == torch.float16


def test_without_a_dtype_of_the_mixture_each_reward_has_its_own():
    rewards = [ClipScoreReward(TINY_CLIP), HPSv2Reward(dtype="bfloat16")]
    RewardMixture(rewards, {"clipscore": 1.0, "hpsv2": 1.0})
    assert [reward.dtype for reward in rewards] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("reward", "dtype"), [(AestheticReward, "float16"), (ClipScoreReward, "int4")])
def test_a_mixtures_dtype_that_no_reward_can_have_is_refused(reward, dtype):
    with pytest.raises(UserError, match=r"model\.rewards.*dtype"):
        RewardMixture([reward()], {reward.name: 1.0}, dtype=dtype)
