"""PickScore: CLIP logits over 26, with a processor from elsewhere."""

import pytest
import torch

from rtdmd_lightning.rewards.pickscore import PickScoreReward
from rtdmd_lightning.rewards.weights import CACHE_VARIABLE
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import assert_gradient_is_right, pictures
from tests.support.tiny_clip import PROMPTS, SIDE, package_logits, save_tiny_clip

CPU = torch.device("cpu")
NO_METADATA: list[dict] = [{}, {}, {}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Model and processor in a folder each, as on the hub."""
    cache = tmp_path_factory.mktemp("cache")
    save_tiny_clip(cache / "pickscore", processor=cache / "pickscore-processor")
    return cache


@pytest.fixture
def reward(cache, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    reward = PickScoreReward()
    reward.to(CPU)
    return reward


def test_the_number_is_the_packages(cache, reward):
    images = pictures(3, (50, 70))
    logits = package_logits(cache / "pickscore", images, PROMPTS, processor=cache / "pickscore-processor")
    assert logits.std() > 5
    score = reward.score(images, PROMPTS, NO_METADATA)
    torch.testing.assert_close(score, logits / 26, rtol=0, atol=1e-3)
    torch.testing.assert_close(reward.reported_scale * score, logits, rtol=0, atol=0.03)


def test_gradients_reach_the_pixels(reward):
    reward.networks()[0].double()
    assert_gradient_is_right(reward, pictures(3, 40), PROMPTS)


def test_a_bilinear_resize_gives_another_number(reward):
    bilinear = PickScoreReward(resize="bilinear")
    bilinear.to(CPU)
    of_size, other = pictures(3, SIDE), pictures(3, (50, 70))
    assert torch.equal(*(scorer.score(of_size, PROMPTS, NO_METADATA) for scorer in (reward, bilinear)))
    difference = reward.score(other, PROMPTS, NO_METADATA) - bilinear.score(other, PROMPTS, NO_METADATA)
    assert difference.abs().max() > 1e-4


def test_a_folder_may_hold_its_own_processor(cache, reward, tmp_path):
    both = PickScoreReward(weights=str(save_tiny_clip(tmp_path)))
    both.to(CPU)
    images = pictures(3)
    assert torch.equal(both.score(images, PROMPTS, NO_METADATA), reward.score(images, PROMPTS, NO_METADATA))


def test_the_processor_may_be_named(cache, reward, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE)
    named = PickScoreReward(weights=str(cache / "pickscore"), processor=str(cache / "pickscore-processor"))
    named.to(CPU)
    images = pictures(3)
    assert torch.equal(named.score(images, PROMPTS, NO_METADATA), reward.score(images, PROMPTS, NO_METADATA))


def test_a_missing_processor_is_told_with_its_own_command(cache, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    with pytest.raises(UserError, match="hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        PickScoreReward(weights=str(cache / "pickscore")).to(CPU)
