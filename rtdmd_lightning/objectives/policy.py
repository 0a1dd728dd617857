"""SubGRPO: group advantages and the clipped policy loss (METHOD section 4)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

STD_EPSILON = 1e-4


def normalized_group_rewards(reward: Tensor, prompts: Sequence[str], *, global_std: bool = True) -> Tensor:
    """`(r - group_mean) / (std + 1e-4)`, `[N]`; groups are the equal prompts, std over the batch or over the group.

    Computed in float64: rewards of a group often differ in their last digits only.
    """
    reward = reward.double()
    names = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([names[prompt] for prompt in prompts], device=reward.device)
    counts = torch.bincount(group).to(reward.dtype)
    mean = torch.zeros_like(counts).index_add_(0, group, reward) / counts
    centred = reward - mean[group]
    if global_std:
        std = reward.std(correction=0)
    else:
        variance = torch.zeros_like(counts).index_add_(0, group, centred**2) / counts
        std = variance.sqrt()[group]
    return centred / (std + STD_EPSILON)


def group_advantages(
    rewards: Mapping[str, Tensor], prompts: Sequence[str], weights: Mapping[str, float], *, global_std: bool = True
) -> Tensor:
    """Weighted sum of the normalised rewards, brought to zero mean and unit std (+1e-4) over the batch, `[N]`; not clipped.

    Raises ValueError for rewards without a weight (or the reverse), of the wrong length, or not finite.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same rewards")
    for name, reward in rewards.items():
        if reward.shape != (len(prompts),):
            raise ValueError(
                f"reward {name!r} has shape {tuple(reward.shape)}, {len(prompts)} prompts want one number each"
            )
        bad = (~torch.isfinite(reward)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"reward {name!r} is {reward[bad[0]].item()} for the prompt {prompts[bad[0]]!r}")
    total = sum(
        weights[name] * normalized_group_rewards(reward, prompts, global_std=global_std)
        for name, reward in rewards.items()
    )
    assert isinstance(total, Tensor), "at least one reward"
    return ((total - total.mean()) / (total.std(correction=0) + STD_EPSILON)).float()


def clipped_policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, *, clip_range: float, adv_clip_max: float = 5.0
) -> Tensor:
    """`mean(max(-A·ρ, -A·clip(ρ, 1-c, 1+c)))`, `ρ = exp(logp - logp_old)`, A clipped to ±5 (METHOD section 4); a scalar."""
    advantages = advantages.clamp(-adv_clip_max, adv_clip_max)
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped).mean()
