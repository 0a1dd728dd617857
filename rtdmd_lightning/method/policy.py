"""SubGRPO: group advantages and the clipped policy loss (METHOD section 4)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32

STD_EPSILON = 1e-4


def normalized_group_rewards(reward: Tensor, prompts: Sequence[str], *, global_std: bool = True) -> Tensor:
    """`(r - group_mean) / (std + 1e-4)`, `[N]` (METHOD section 4, item 3): one reward, before its weight.

    Groups are the equal prompts, in any order; the std is the population's, over the batch or over the group.
    Computed and returned in float64: rewards of a group often differ in their last digits only, and the mean of equal
    float32 rewards is then exact, so that a group without differences gives exact zeros.

    Raises ValueError unless there is one prompt for each reward.
    """
    centred, group, counts = _centred_by_group(reward, prompts)
    if global_std:
        std = reward.double().std(correction=0)
    else:
        variance = torch.zeros_like(counts).index_add_(0, group, centred**2) / counts
        std = variance.sqrt()[group]
    return centred / (std + STD_EPSILON)


def leave_one_out_advantages(reward: Tensor, prompts: Sequence[str]) -> Tensor:
    """`r_i` minus the mean of the *other* rewards of its group, `[N]` float64: no bias (METHOD section 4, item 3, *ours*).

    The group's mean holds r_i itself and so shrinks the policy gradient by (K-1)/K; any division by a std of the rewards
    biases it further. The baseline here is independent of what sample i drew, also given noise that the whole group shares.

    Raises ValueError unless there is one prompt for each reward and every group has at least two.
    """
    centred, group, counts = _centred_by_group(reward, prompts)
    if bool((counts < 2).any()):
        raise ValueError(
            "a sample alone in its group has nothing to be compared with: sample each prompt twice or more"
        )
    return centred * (counts / (counts - 1))[group]


def _centred_by_group(reward: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """`r - group_mean` in float64, the group of each sample, numbered from 0, and the size of each group."""
    if reward.shape != (len(prompts),):
        raise ValueError(
            f"rewards of shape {tuple(reward.shape)} for {len(prompts)} prompts: one number each is wanted"
        )
    reward = reward.double()
    names = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([names[prompt] for prompt in prompts], device=reward.device)
    counts = torch.bincount(group).to(reward.dtype)
    mean = torch.zeros_like(counts).index_add_(0, group, reward) / counts
    return reward - mean[group], group, counts


def group_advantages(
    rewards: Mapping[str, Tensor], prompts: Sequence[str], weights: Mapping[str, float], *, global_std: bool = True
) -> Tensor:
    """`A = Σ_i w_i·r̃_i / (std + 1e-4)`, `[N]`, std over the batch (METHOD section 4, item 3); not clipped yet.

    Each `r̃_i` is `normalized_group_rewards`. The sum has zero mean as it is, group by group, so no mean is subtracted again:
    rounding would make the exact zeros of groups without differences, whose samples are dropped, almost zeros. (The authors
    subtract it, so that by chance such a group is kept, with advantages of 1e-17.)

    Rewards are `[N]`, tensors or lists; the result is float32, or float64 where a reward is. Raises ValueError for no rewards
    at all, for rewards without a weight (or the reverse), of the wrong length, or not finite.
    """
    if not rewards or rewards.keys() != weights.keys():
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same, one or more, rewards"
        )
    values = {name: torch.as_tensor(reward) for name, reward in rewards.items()}
    for name, reward in values.items():
        _check_reward(name, reward, prompts)
    normalized = [
        weights[name] * normalized_group_rewards(values[name], prompts, global_std=global_std) for name in values
    ]
    total = torch.stack(normalized).sum(dim=0)
    advantages = total / (total.std(correction=0) + STD_EPSILON)
    return advantages if any(reward.dtype == torch.float64 for reward in values.values()) else advantages.float()


def _check_reward(name: str, reward: Tensor, prompts: Sequence[str]) -> None:
    if reward.shape != (len(prompts),):
        raise ValueError(
            f"reward {name!r} has shape {tuple(reward.shape)}, {len(prompts)} prompts want one number each"
        )
    bad = (~torch.isfinite(reward)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"reward {name!r} is {reward[bad[0]].item()} for the prompt {prompts[bad[0]]!r}")


def clipped_policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, *, clip_range: float, adv_clip_max: float = 5.0
) -> Tensor:
    """`mean(max(-A·ρ, -A·clip(ρ, 1-c, 1+c)))`, `ρ = exp(logp - logp_old)`, A clipped to ±5 (METHOD section 4, item 5); a scalar.

    All three are `[N]`; ValueError if their shapes differ (`[N]` and `[N, 1]` would broadcast to every pair). In half precision
    1 ± 1e-5 is 1, so all arithmetic is float32 or better.
    """
    if not log_prob.shape == old_log_prob.shape == advantages.shape:
        shapes = [tuple(tensor.shape) for tensor in (log_prob, old_log_prob, advantages)]
        raise ValueError(f"log_prob, old_log_prob and advantages must have one shape: got {shapes}")
    advantages = at_least_float32(advantages).clamp(-adv_clip_max, adv_clip_max)
    ratio = torch.exp(at_least_float32(log_prob) - at_least_float32(old_log_prob))
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped).mean()


def reward_hinge_loss(reward: Tensor, *, ceiling: float = 3.0) -> Tensor:
    """`mean(relu(3.0 - Σ_i w_i·r_i))` of the weighted sums `[N]` (METHOD section 4, item 5); a scalar.

    Its gradient is minus the mean reward's; samples above the ceiling have none.
    """
    return torch.relu(ceiling - at_least_float32(reward)).mean()
