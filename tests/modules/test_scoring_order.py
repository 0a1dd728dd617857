"""Stage 2 updates the fake score while images are still being scored, which changes nothing but the time it takes."""

import threading

import pytest
import torch

from rtdmd_lightning.rewards.mixture import RewardError, RewardMixture
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from tests.support.tiny import train
from tests.support.tiny_rtdmd import Redness, save_cold_start, tiny_rtdmd_module

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


class Held(Redness):
    """Gives its scores when it is told to; until then it waits."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.fails = False

    def score(self, images, prompts, metadata):
        assert self.told.wait(timeout=120)
        if self.fails:
            raise RuntimeError("no such colour")
        return super().score(images, prompts, metadata)


def only(reward):
    return RewardMixture([reward], {reward.name: 1.0}, [reward.name])


def adapters(module) -> dict[str, torch.Tensor]:
    return {
        role: torch.cat([value.flatten() for name, value in module.state_dict().items() if f".{role}." in name])
        for role in (GENERATOR, FAKE_SCORE, EMA)
    }


def telling(module, reward):
    """The reward is told as soon as the fake score's update has begun."""
    fake_loss = module.fake_loss

    def told(rollout):
        reward.told.set()
        return fake_loss(rollout)

    module.fake_loss = told


def test_the_fake_score_is_updated_before_any_score_is_there(tiny_folder, cold_start):
    reward = Held()
    module = tiny_rtdmd_module(tiny_folder, cold_start, rewards=only(reward))
    telling(module, reward)
    trainer = train(module)
    assert trainer.global_step == 1 and "reward/redness" in trainer.callback_metrics


def test_a_reward_that_fails_during_the_update_stops_the_step(tiny_folder, cold_start):
    """The generator and its average are as they were; the step is not counted."""
    reward = Held()
    reward.fails = True
    module = tiny_rtdmd_module(tiny_folder, cold_start, rewards=only(reward))
    telling(module, reward)
    before = adapters(module)
    with pytest.raises(RewardError, match=r"redness.*no such colour"):
        train(module)
    after = adapters(module)
    assert all(torch.equal(before[role], after[role]) for role in (GENERATOR, EMA))
    assert module.global_step == 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_listener_hears_of_advantages_before_anything_is_updated_and_changes_nothing(
    tiny_folder, cold_start, shuffle
):
    results, heard = [], []

    def listen(rollouts, epoch, chosen):
        heard.append((epoch, any(rollout.advantages.any() for rollout in rollouts), adapters(module)))

    for listeners in ([], [listen]):
        module = tiny_rtdmd_module(tiny_folder, cold_start, shuffle=shuffle)
        module.listeners += listeners
        before = adapters(module)
        trainer = train(module, steps=2)
        results.append(adapters(module) | {name: value for name, value in trainer.callback_metrics.items()})
    timeless = [{k: v for k, v in result.items() if not k.startswith("time/")} for result in results]
    assert timeless[0].keys() == timeless[1].keys()
    assert [name for name in timeless[0] if not torch.equal(timeless[0][name], timeless[1][name])] == []
    assert [entry[:2] for entry in heard] == [(0, True), (1, True)]
    first = heard[0][2]
    assert all(torch.equal(first[role], before[role]) for role in before)
    assert not torch.equal(results[0][FAKE_SCORE], before[FAKE_SCORE])
