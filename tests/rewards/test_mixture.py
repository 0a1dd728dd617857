"""The mixture: scores by name, the sum that carries a gradient, and rewards that go wrong."""

import math

import pytest
import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardError, RewardMixture
from rtdmd_lightning.utils.errors import UserError

PROMPTS = ["a dog", "a cat", "a cow"]
METADATA: list[dict] = [{"n": 0}, {"n": 1}, {"n": 2}]


class Brightness(Reward):
    name, differentiable = "brightness", True

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return images.mean(dim=(1, 2, 3))


class Redness(Brightness):
    name = "redness"

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return images[:, 0].square().mean(dim=(1, 2))


class Number(Reward):
    """What its table says of the metadata's number."""

    name, differentiable = "number", False

    def __init__(self, table: list[float]) -> None:
        self.table = table

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return torch.tensor([self.table[entry["n"]] for entry in metadata])


class Fails(Reward):
    """Raises for one prompt, or for batches that are too large."""

    name, differentiable = "fails", False

    def __init__(self, prompt: str | None = None, largest: int = 100) -> None:
        self.prompt, self.largest = prompt, largest

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        assert len(images) == len(prompts) == len(metadata)
        if self.prompt in prompts or len(prompts) > self.largest:
            raise KeyError("broken")
        return torch.zeros(len(prompts))


class Detached(Brightness):
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return super().score(images, prompts, metadata).detach()


def images() -> Tensor:
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def mixture(number: list[float] | None = None) -> RewardMixture:
    rewards = [Brightness(), Redness(), Number(number or [1.0, 2.0, 3.0])]
    return RewardMixture(rewards, {"number": 10.0, "brightness": 2.0, "redness": 0.5}, ["redness", "brightness"])


class Named(Reward):
    """A reward of that name."""

    def __init__(self, name: str, differentiable: bool = True) -> None:
        self.name, self.differentiable = name, differentiable

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return len(self.name) * images.mean(dim=(1, 2, 3))


def test_scores_are_the_rewards_own_by_name():
    pixels = images().requires_grad_()
    scores = mixture().score(pixels, PROMPTS, METADATA)
    assert list(scores) == ["brightness", "redness", "number"]
    assert not any(score.requires_grad for score in scores.values())
    torch.testing.assert_close(scores["brightness"], images().flatten(1).mean(1))
    assert scores["number"].tolist() == [1, 2, 3]


def test_the_differentiable_sum_is_of_the_back_propagated_and_has_their_gradient():
    pixels = images().requires_grad_()
    total = mixture().differentiable_sum(pixels, PROMPTS, METADATA)
    torch.testing.assert_close(total, 2 * images().flatten(1).mean(1) + 0.5 * images()[:, 0].square().mean((1, 2)))
    total.sum().backward()
    expected = torch.full_like(pixels, 2 / 48)
    expected[:, 0] += images()[:, 0] / 16
    torch.testing.assert_close(pixels.grad, expected)


def test_a_reward_of_weight_zero_is_scored_but_does_not_pull():
    held_out = RewardMixture([Brightness(), Redness()], {"brightness": 1.0, "redness": 0.0}, ["brightness"])
    assert held_out.score(images(), PROMPTS, METADATA)["redness"].mean() > 0
    total = held_out.differentiable_sum(images(), PROMPTS, METADATA)
    torch.testing.assert_close(total, images().flatten(1).mean(1))


def test_by_default_the_papers_three_are_back_propagated():
    """Those of them that are trained and differentiable: not one that a server scores."""
    names = ["imagereward", "hpsv2", "aesthetic", "clipscore", "pickscore"]
    rewards: list[Reward] = [Named(name) for name in names]
    weights = dict.fromkeys(names, 1.0)
    assert RewardMixture(rewards, weights).differentiable == ["hpsv2", "clipscore", "pickscore"]
    assert RewardMixture(rewards, weights | {"hpsv2": 0.0}).differentiable == ["clipscore", "pickscore"]
    rewards[-1] = Named("pickscore", differentiable=False)
    fewer = RewardMixture(rewards, weights)
    assert fewer.differentiable == ["hpsv2", "clipscore"]
    total = fewer.differentiable_sum(images(), PROMPTS, METADATA)
    torch.testing.assert_close(total, len("hpsv2clipscore") * images().flatten(1).mean(1))


def test_others_are_back_propagated_by_name():
    both = [Named("clipscore"), Named("imagereward")]
    weights = {"clipscore": 1.0, "imagereward": 1.0}
    assert RewardMixture(both, weights, ["imagereward"]).differentiable == ["imagereward"]
    assert RewardMixture(both, weights, []).differentiable == []


@pytest.mark.parametrize("wrong", [["number"], ["hpsv2"], ["redness"], ["brightness", "brightness"]])
def test_a_reward_that_cannot_be_back_propagated_is_refused(wrong):
    """It has no gradient, is not there, has no weight, or is named twice."""
    rewards = [Brightness(), Redness(), Number([1.0])]
    with pytest.raises(UserError, match=rf"model\.rewards\.back_propagated names '{wrong[0]}'"):
        RewardMixture(rewards, {"brightness": 1.0, "redness": 0.0, "number": 1.0}, wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_names_reward_and_prompt(value):
    with pytest.raises(RewardError, match=rf"'number' returned {value} for the prompt 'a cat'"):
        mixture([1.0, value, value]).score(images(), PROMPTS, METADATA)


def test_a_gradient_from_nan_is_stopped_too():
    pixels = images()
    pixels[2, 1, 0, 0] = math.nan
    with pytest.raises(RewardError, match="'brightness' returned nan for the prompt 'a cow'"):
        mixture().differentiable_sum(pixels.requires_grad_(), PROMPTS, METADATA)


def test_a_reward_that_raises_names_reward_and_prompt_and_keeps_its_cause():
    failing = RewardMixture([Fails("a cow")], {"fails": 1.0})
    with pytest.raises(RewardError, match=r"'fails' failed on the prompt 'a cow': KeyError\('broken'\)") as caught:
        failing.score(images(), PROMPTS, METADATA)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_batch_that_fails_as_a_whole_blames_no_prompt():
    failing = RewardMixture([Fails(largest=2)], {"fails": 1.0})
    with pytest.raises(
        RewardError, match=r"on a batch of 3, though on none of its prompts alone, the first .* 'a dog'"
    ):
        failing.score(images(), PROMPTS, METADATA)


def test_a_score_of_another_shape_is_refused():
    with pytest.raises(RewardError, match=r"'brightness' returned \(3,\) for 2 prompts"):
        RewardMixture([Brightness()], {"brightness": 1.0}).score(images(), PROMPTS[:2], METADATA[:2])


def test_a_differentiable_reward_without_a_gradient_is_refused():
    detached = RewardMixture([Detached()], {"brightness": 1.0}, ["brightness"])
    with pytest.raises(RewardError, match="calls itself differentiable but its score has no gradient"):
        detached.differentiable_sum(images().requires_grad_(), PROMPTS, METADATA)


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"model\.rewards\.back_propagated"):
        RewardMixture([Number([1.0])], {"number": 1.0}).differentiable_sum(images()[:1], PROMPTS[:1], METADATA[:1])


@pytest.mark.parametrize("weights", [{"brightness": 1.0}, {"brightness": 1.0, "redness": 1.0, "rednes": 1.0}, {}])
def test_every_reward_wants_its_weight(weights):
    with pytest.raises(UserError, match="must name the same"):
        RewardMixture([Brightness(), Redness()], weights)


@pytest.mark.parametrize("rewards", [[], [Brightness(), Brightness()]])
def test_names_must_differ(rewards):
    with pytest.raises(UserError, match="different names"):
        RewardMixture(rewards, {reward.name: 1.0 for reward in rewards})
