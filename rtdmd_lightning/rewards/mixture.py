"""Several rewards as one: scored together by name, and summed where a gradient is wanted."""

import torch
from torch import Tensor

from rtdmd_lightning.errors import UserError
from rtdmd_lightning.rewards.base import Reward


class RewardError(RuntimeError):
    """A reward raised, or returned something that is not a finite number; the message names the reward and the prompt."""


class RewardGone(RewardError):
    """A remote reward has not answered for too long; the message names it and its address. No prompt is at fault."""


class RewardMixture:
    """Rewards with a weight each.

    Args:
        rewards: their names must differ.
        weights: one per reward, by name. A reward of weight 0 is scored (and so logged) but pulls at nothing.

    Raises UserError where names collide, or where weights and rewards do not name the same.
    """

    def __init__(self, rewards: list[Reward], weights: dict[str, float]) -> None:
        names = [reward.name for reward in rewards]
        if not rewards or len(set(names)) != len(names):
            raise UserError(f"a mixture wants one or more rewards of different names, not {names}")
        if set(names) != weights.keys():
            raise UserError(f"the rewards {sorted(names)} and their weights {sorted(weights)} must name the same")
        self.rewards = {reward.name: reward for reward in rewards}
        self.weights = weights

    def to(self, device: torch.device) -> None:
        """Load the rewards' weights unless that is done, and move them."""
        for reward in self.rewards.values():
            reward.to(device)

    @property
    def differentiable(self) -> list[str]:
        """Names of the rewards that `differentiable_sum` adds up."""
        return [name for name, reward in self.rewards.items() if reward.differentiable and self.weights[name] != 0]

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> dict[str, Tensor]:
        """`[B]` float32 scores by reward name, unweighted and without gradient.

        Raises RewardError where a reward raises, or returns anything but B finite numbers.
        """
        return {name: checked_score(reward, images, prompts, metadata).float() for name, reward in self.rewards.items()}

    def differentiable_sum(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        """`Σ_i w_i·r_i`, `[B]`, over the differentiable rewards only, with gradient to `images`.

        Raises UserError for a mixture without any, RewardError as `score` does and for a score that has lost its gradient.
        """
        if not self.differentiable:
            raise UserError(f"none of the rewards {sorted(self.rewards)} with a weight is differentiable")
        terms = []
        for name in self.differentiable:
            score = checked_score(self.rewards[name], images, prompts, metadata)
            if images.requires_grad and not score.requires_grad:
                raise RewardError(f"the reward {name!r} calls itself differentiable but its score has no gradient")
            terms.append(self.weights[name] * score)
        return torch.stack(terms).sum(dim=0)


def checked_score(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """A reward's scores `[B]`. Raises RewardError as `RewardMixture.score` does."""
    try:
        score = reward.score(images, prompts, metadata)
    except RewardGone:
        raise  # to ask for each prompt alone would be to wait as long again
    except Exception as error:
        prompt = _culprit(reward, images, prompts, metadata)
        raise RewardError(f"the reward {reward.name!r} failed on {prompt}: {error!r}") from error
    if score.shape != (len(prompts),):
        raise RewardError(f"the reward {reward.name!r} returned {tuple(score.shape)} for {len(prompts)} prompts")
    finite = torch.isfinite(score.detach())
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        raise RewardError(
            f"the reward {reward.name!r} returned {score[first].item()} for the prompt {prompts[first]!r}"
        )
    return score


@torch.no_grad()
def _culprit(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> str:
    """Which prompt a reward fails on: it is asked once more for each image alone, up to the first that fails again."""
    for index, prompt in enumerate(prompts):
        try:
            reward.score(images[index : index + 1], [prompt], metadata[index : index + 1])
        except Exception:
            return f"the prompt {prompt!r}"
    return f"a batch of {len(prompts)}, though on none of its prompts alone, the first of which is {prompts[0]!r}"
