"""Advantages and the clipped policy loss: their invariants, gradients and errors."""

import math
import statistics

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import normal

PROMPTS = ["cat", "dog", "cat", "dog", "cat", "owl", "owl", "dog"]
WEIGHTS = {"clipscore": 1.0, "geneval": 2.0}

both_stds = pytest.mark.parametrize("global_std", [True, False])


def rewards() -> dict[str, Tensor]:
    return {"clipscore": 0.3 + 0.02 * normal(8, seed=1).float(), "geneval": torch.rand(8, generator=generator())}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


# ----------------------------------------------------------------------------------------------------------- advantages


@both_stds
def test_normalised_rewards_are_those_of_a_plain_loop(global_std):
    reward = rewards()["clipscore"].double().tolist()
    groups = {prompt: [r for r, p in zip(reward, PROMPTS, strict=True) if p == prompt] for prompt in PROMPTS}
    expected = [
        (r - statistics.fmean(groups[p])) / (statistics.pstdev(reward if global_std else groups[p]) + 1e-4)
        for r, p in zip(reward, PROMPTS, strict=True)
    ]
    ours = objectives.normalized_group_rewards(rewards()["clipscore"], PROMPTS, global_std=global_std)
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


@both_stds
def test_advantages_are_the_weighted_sum_brought_to_zero_mean_and_unit_std(global_std):
    advantages = objectives.group_advantages(rewards(), PROMPTS, WEIGHTS, global_std=global_std)
    total = sum(
        WEIGHTS[name] * objectives.normalized_group_rewards(reward, PROMPTS, global_std=global_std)
        for name, reward in rewards().items()
    )
    expected = (total - total.mean()) / (total.std(correction=0) + 1e-4)
    assert advantages.dtype == torch.float32
    assert_close(advantages, expected.float())
    assert advantages.mean().item() == pytest.approx(0, abs=1e-7)
    assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-3)


@both_stds
def test_permuting_the_samples_permutes_their_advantages(global_std):
    order = torch.randperm(8, generator=generator())
    advantages = objectives.group_advantages(rewards(), PROMPTS, WEIGHTS, global_std=global_std)
    permuted = objectives.group_advantages(
        {name: reward[order] for name, reward in rewards().items()},
        [PROMPTS[i] for i in order.tolist()],
        WEIGHTS,
        global_std=global_std,
    )
    assert_close(permuted, advantages[order])


@both_stds
def test_a_group_without_differences_has_exactly_zero_advantage(global_std):
    """Exactly: samples of zero advantage are dropped, and rounding must not keep them. 0.1 is not a binary fraction."""
    constant = rewards()
    for reward, value in zip(constant.values(), (0.1, 0.7), strict=True):
        reward[[index for index, prompt in enumerate(PROMPTS) if prompt == "dog"]] = value
    advantages = objectives.group_advantages(constant, PROMPTS, WEIGHTS, global_std=global_std)
    assert [advantage == 0 for advantage in advantages.tolist()] == [prompt == "dog" for prompt in PROMPTS]


@both_stds
def test_a_reward_that_is_constant_in_a_group_contributes_nothing_there(global_std):
    """The group's advantages are then the other reward's alone; other groups keep both."""
    both = rewards()
    dogs = torch.tensor([prompt == "dog" for prompt in PROMPTS])
    both["clipscore"][dogs] = 0.1
    parts = {
        name: WEIGHTS[name] * objectives.normalized_group_rewards(reward, PROMPTS, global_std=global_std)
        for name, reward in both.items()
    }
    assert torch.equal(parts["clipscore"] == 0, dogs)
    ratio = objectives.group_advantages(both, PROMPTS, WEIGHTS, global_std=global_std) / parts["geneval"]
    assert_close(ratio[dogs], ratio[dogs][0].expand(int(dogs.sum())))
    assert ((ratio[~dogs] / ratio[dogs][0] - 1).abs() > 1e-3).all()


@both_stds
def test_nothing_to_learn_from_is_zeros_and_not_nan(global_std):
    same = {"clipscore": torch.full((8,), 0.1), "geneval": torch.zeros(8)}
    advantages = objectives.group_advantages(same, PROMPTS, WEIGHTS, global_std=global_std)
    assert torch.equal(advantages, torch.zeros(8))


def test_groups_of_one_have_nothing_to_be_compared_with():
    alone = objectives.group_advantages({"r": torch.tensor([0.1, 0.5, 0.9])}, ["a", "b", "c"], {"r": 1.0})
    assert torch.equal(alone, torch.zeros(3))


@both_stds
def test_how_good_a_prompt_is_on_the_whole_does_not_matter_within_its_group(global_std):
    """A prompt's own offset leaves every group's order and, with the group's std, the very numbers."""
    reward = normal(8, seed=1)
    offset = torch.tensor([{"cat": 0.0, "dog": 3.0, "owl": -1.0}[prompt] for prompt in PROMPTS])
    before, after = (
        objectives.normalized_group_rewards(r, PROMPTS, global_std=global_std) for r in (reward, reward + offset)
    )
    if global_std:
        assert_close(after / before, (after / before)[0].expand(8))
        assert (after.abs() < before.abs()).all()
    else:
        assert_close(after, before)


def test_a_reward_of_weight_zero_is_as_if_absent():
    with_it = objectives.group_advantages(rewards(), PROMPTS, {"clipscore": 1.0, "geneval": 0.0})
    without = objectives.group_advantages({"clipscore": rewards()["clipscore"]}, PROMPTS, {"clipscore": 1.0})
    assert_close(with_it, without)


def test_rewards_may_be_lists_halves_or_doubles():
    exact = {"r": [0.5, 0.25, 1.0, 0.0]}
    prompts, weights = ["a", "a", "b", "b"], {"r": 1.0}
    from_list = objectives.group_advantages(exact, prompts, weights)
    for dtype, result in [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]:
        advantages = objectives.group_advantages({"r": torch.tensor(exact["r"], dtype=dtype)}, prompts, weights)
        assert advantages.dtype == result
        assert_close(advantages.float(), from_list)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named_with_its_prompt(value):
    broken = rewards()
    broken["geneval"][5] = value
    with pytest.raises(ValueError, match=f"'geneval' is {value} for the prompt 'owl'"):
        objectives.group_advantages(broken, PROMPTS, WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"clipscore": 1.0}, "must name the same"),
        ({**WEIGHTS, "ocr": 1.0}, "must name the same"),
        ({"clipscore": 1.0, "genval": 1.0}, r"\['clipscore', 'geneval'\] and weights \['clipscore', 'genval'\]"),
    ],
)
def test_rewards_and_weights_must_name_the_same(weights, match):
    with pytest.raises(ValueError, match=match):
        objectives.group_advantages(rewards(), PROMPTS, weights)


def test_no_rewards_at_all_are_refused():
    with pytest.raises(ValueError, match="one or more"):
        objectives.group_advantages({}, PROMPTS, {})


@pytest.mark.parametrize("shape", [(7,), (8, 1), ()], ids=str)
def test_one_number_for_each_prompt(shape):
    with pytest.raises(ValueError, match=r"'geneval' has shape .* 8 prompts"):
        objectives.group_advantages({**rewards(), "geneval": torch.zeros(shape)}, PROMPTS, WEIGHTS)
    with pytest.raises(ValueError, match="8 prompts"):
        objectives.normalized_group_rewards(torch.zeros(shape), PROMPTS)


# ---------------------------------------------------------------------------------------------------------- policy loss


def gradient(log_ratio: float, advantage: float, clip_range: float = 0.2, **options) -> float:
    """Of the loss of one sample with respect to its log-probability."""
    old = torch.tensor([-0.3], dtype=torch.float64)
    log_prob = (old + log_ratio).requires_grad_()
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = objectives.clipped_policy_loss(log_prob, old, advantages, clip_range=clip_range, **options)
    return torch.autograd.grad(loss, log_prob)[0].item()


@pytest.mark.parametrize("clip_range", [1e-5, 0.2])
def test_on_policy_the_gradient_is_minus_the_advantage(clip_range):
    """At ratio 1: REINFORCE, `-A·∇logp` averaged over the samples."""
    log_prob = normal(6, seed=1).float().requires_grad_()
    advantages = normal(6, seed=2).float()
    loss = objectives.clipped_policy_loss(log_prob, log_prob.detach(), advantages, clip_range=clip_range)
    assert_close(loss, -advantages.mean())
    assert_close(torch.autograd.grad(loss, log_prob)[0], -advantages / 6)


@pytest.mark.parametrize("clip_range", [1e-5, 0.2])
@pytest.mark.parametrize(("advantage", "direction"), [(1.5, 1), (-1.5, -1)])
def test_past_the_clip_range_on_the_good_side_nothing_pulls_further(advantage, direction, clip_range):
    assert gradient(direction * 3 * clip_range, advantage, clip_range) == 0


@pytest.mark.parametrize("clip_range", [1e-5, 0.2])
@pytest.mark.parametrize(("advantage", "direction"), [(1.5, -1), (-1.5, 1)])
def test_on_the_bad_side_the_pull_back_is_not_clipped(advantage, direction, clip_range):
    log_ratio = direction * 3 * clip_range
    assert gradient(log_ratio, advantage, clip_range) == pytest.approx(-advantage * math.exp(log_ratio))


@pytest.mark.parametrize(("log_ratio", "advantage"), [(0.1, 2.0), (-0.1, 2.0), (0.1, -2.0), (-0.1, -2.0)])
def test_inside_the_clip_range_the_gradient_is_weighted_by_the_ratio(log_ratio, advantage):
    assert gradient(log_ratio, advantage) == pytest.approx(-advantage * math.exp(log_ratio))


@pytest.mark.parametrize("sign", [1, -1])
def test_advantages_are_clipped(sign):
    assert gradient(0.0, sign * 50.0) == pytest.approx(-sign * 5)
    assert gradient(0.0, sign * 50.0, adv_clip_max=20.0) == pytest.approx(-sign * 20)


def test_the_loss_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5 clipped to 1 ± 0.2, advantages 1, 1, -1, -1: the worse of the two each time."""
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    loss = objectives.clipped_policy_loss(ratio.log(), torch.zeros_like(ratio), advantages, clip_range=0.2)
    assert loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_shapes_that_would_broadcast_are_refused(odd):
    tensors = [torch.zeros(4) for _ in range(3)]
    tensors[odd] = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="one shape"):
        objectives.clipped_policy_loss(*tensors, clip_range=1e-5)
