"""Several rewards as one: scored together by name, and summed where a gradient is wanted."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.precision import TowerDtype, tower_dtype
from rtdmd_lightning.rewards.registry import check_reward
from rtdmd_lightning.utils.errors import UserError, require


class RewardError(RuntimeError):
    """A reward raised, or returned something that is not a finite number; the message names the reward and the prompt."""


class RewardGone(RewardError):
    """What scores has ended or, somewhere else, has not answered for too long; the message names it. No prompt is at fault."""


PAPER_BACK_PROPAGATED = ("clipscore", "pickscore", "hpsv2")
"""The rewards that the paper back-propagates where they are trained (METHOD section 5.1)."""

OPTION = "model.rewards.back_propagated"


class RewardMixture:
    """Rewards with a weight each. `differentiable` lists the names of those that `differentiable_sum` adds up.

    Args:
        rewards: their names must differ.
        weights: one per reward, by name. A reward of weight 0 is scored and logged, but not trained on.
        back_propagated: names of the rewards whose gradient is taken; each must be differentiable and have a weight other than
            0. By default clipscore, pickscore and hpsv2, those of them for which that holds (METHOD section 5.1).
        dtype: of the networks of all rewards that have an option `dtype`, in place of their own; null: each one's own.

    Raises UserError where names collide, where weights and rewards do not name the same, for a reward that cannot be
    back-propagated, and for a dtype where no reward has one to choose.
    """

    def __init__(
        self,
        rewards: list[Reward],
        weights: dict[str, float],
        back_propagated: list[str] | None = None,
        dtype: TowerDtype | None = None,
    ) -> None:
        for reward in rewards:
            check_reward(reward)
        names = [reward.name for reward in rewards]
        if not rewards or len(set(names)) != len(names):
            raise UserError(f"a mixture wants one or more rewards of different names, not {names}")
        if set(names) != weights.keys():
            raise UserError(f"the rewards {sorted(names)} and their weights {sorted(weights)} must name the same")
        self.rewards = {reward.name: reward for reward in rewards}
        self.weights = weights
        self.differentiable = _back_propagated(self.rewards, weights, back_propagated)
        self.dtype = dtype
        if dtype is not None:
            self._choose_dtype(dtype)

    @property
    def of_any_dtype(self) -> list[Reward]:
        """Those whose networks may be in half precision."""
        return [reward for reward in self.rewards.values() if reward.dtype is not None]

    def _choose_dtype(self, dtype: TowerDtype) -> None:
        require(
            bool(self.of_any_dtype),
            f"model.rewards.dtype is {dtype}, but the dtype of none of the rewards {sorted(self.rewards)} can be chosen: leave "
            "it out",
        )
        for reward in self.of_any_dtype:
            reward.dtype = tower_dtype("model.rewards", dtype)

    def to(self, device: torch.device) -> None:
        """Load the rewards' weights unless that is done, and move them."""
        for reward in self.rewards.values():
            reward.to(device)

    def offload(self) -> None:
        """Let the rewards' weights lie in CPU memory while they do not score; before `to`."""
        for reward in self.rewards.values():
            reward.offloaded = True

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The back-propagated rewards on the device, all at once: their sum has one gradient."""
        with ExitStack() as stack:
            for name in self.differentiable:
                stack.enter_context(self.rewards[name].at_work())
            yield

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> dict[str, Tensor]:
        """`[B]` float32 scores by reward name, unweighted and without gradient.

        Raises RewardError where a reward raises, or returns anything but B finite numbers.
        """
        return self.score_all([(images, prompts, metadata)], images.device)

    @torch.no_grad()
    def score_all(
        self, batches: Sequence[tuple[Tensor, list[str], list[dict]]], device: torch.device
    ) -> dict[str, Tensor]:
        """As `score`, of several batches whose images may wait elsewhere than on the device.

        One reward after the other scores them all, so that an offloaded one comes to the device once.
        """
        scores = {}
        for name, reward in self.rewards.items():
            with reward.at_work():
                of_batches = [
                    checked_score(reward, images.to(device), prompts, metadata).float()
                    for images, prompts, metadata in batches
                ]
            scores[name] = torch.cat(of_batches)
        return scores

    def differentiable_scores(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> dict[str, Tensor]:
        """`[B]` scores of the back-propagated rewards by name, unweighted, with gradient to `images`.

        Raises UserError for a mixture without any, RewardError as `score` does and for a score that has lost its gradient.
        """
        if not self.differentiable:
            raise UserError(f"none of the rewards {sorted(self.rewards)} is back-propagated: name one in {OPTION}")
        scores = {}
        for name in self.differentiable:
            score = checked_score(self.rewards[name], images, prompts, metadata)
            if images.requires_grad and not score.requires_grad:
                raise RewardError(f"the reward {name!r} calls itself differentiable but its score has no gradient")
            scores[name] = score
        return scores

    def differentiable_sum(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        """`Σ_i w_i·r_i`, `[B]`, over them."""
        scores = self.differentiable_scores(images, prompts, metadata)
        return torch.stack([self.weights[name] * score for name, score in scores.items()]).sum(dim=0)


def checked_score(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """A reward's scores `[B]`. Raises RewardError as `RewardMixture.score` does."""
    score = one_score_each(reward, images, prompts, metadata)
    finite = torch.isfinite(score.detach())
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        raise RewardError(
            f"the reward {reward.name!r} returned {score[first].item()} for the prompt {prompts[first]!r}"
        )
    return score


def one_score_each(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """The same, whatever the numbers are: NaN and infinities are let through."""
    version = None if images.is_inference() else images._version
    try:
        score = reward.score(images, prompts, metadata)
    except RewardGone:
        raise  # to ask for each prompt alone would be to wait as long again, and blame the first
    except (Exception, SystemExit) as error:
        prompt = _culprit(reward, images, prompts, metadata)
        raise RewardError(f"the reward {reward.name!r} failed on {prompt}: {error!r}") from error
    if version is not None and images._version != version:
        raise RewardError(f"the reward {reward.name!r} changes the images that it is given: work on a copy of them")
    check_scores(reward.name, score, len(prompts))
    return score


def check_scores(name: str, score: Any, count: int) -> None:
    """Raises RewardError unless a reward returned a tensor `[count]` of real numbers."""
    if not isinstance(score, Tensor):
        raise RewardError(f"the reward {name!r} returned a {type(score).__name__}, not a tensor of {count} scores")
    if score.shape != (count,):
        raise RewardError(f"the reward {name!r} returned {tuple(score.shape)} for {count} prompts")
    if score.is_complex():
        raise RewardError(f"the reward {name!r} returned {score.dtype} numbers; scores are real numbers")


@torch.no_grad()
def _culprit(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> str:
    """Which prompt a reward fails on: it is asked once more for each image alone, up to the first that fails again."""
    for index, prompt in enumerate(prompts):
        try:
            reward.score(images[index : index + 1], [prompt], metadata[index : index + 1])
        except (Exception, SystemExit):
            return f"the prompt {prompt!r}"
    return f"a batch of {len(prompts)}, though on none of its prompts alone, the first of which is {prompts[0]!r}"


def _back_propagated(rewards: dict[str, Reward], weights: dict[str, float], wanted: list[str] | None) -> list[str]:
    """The wanted names, by default the paper's, in the order of the rewards; see `RewardMixture`."""
    trained = [name for name in rewards if weights[name] != 0]
    if wanted is None:
        wanted = [name for name in trained if name in PAPER_BACK_PROPAGATED and rewards[name].differentiable]
    for name in wanted:
        require(name in trained, f"{OPTION} names {name!r}, which is none of the rewards with a weight, {trained}")
        require(rewards[name].differentiable, f"{OPTION} names {name!r}, whose score has no gradient: leave it out")
        require(wanted.count(name) == 1, f"{OPTION} names {name!r} twice")
    return [name for name in rewards if name in wanted]
