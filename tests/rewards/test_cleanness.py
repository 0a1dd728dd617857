"""Cleanness: by hand, on renders, and that it sees what the checker does not."""

import numpy as np
import pytest
import torch

from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.rewards.cleanness import CleannessReward
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.shapes.render import render_batch
from rtdmd_lightning.shapes.world import COLORS, sample_scene


def score(images):
    return CleannessReward().score(images, [""] * len(images), [{}] * len(images))


def test_it_is_the_share_of_pixels_in_the_ground_or_a_palette_colour():
    image = torch.full((1, 3, 8, 8), 0.9)
    assert score(image).tolist() == [1.0]
    image[0, :, 2, 2:6] = torch.tensor(COLORS["red"])[:, None]
    image[0, :, 3, 2:6] = torch.tensor(COLORS["blue"])[:, None] + 0.04  # 0.07 away
    assert score(image).tolist() == [1.0]
    image[0, :, 4, 2:6] = torch.tensor(COLORS["blue"])[:, None] + 0.05  # 0.087 away
    image[0, :, 5, 2:6] = 0.5  # a grey that is not the ground
    assert score(image).tolist() == [1 - 8 / 64]
    assert score(image.repeat(3, 1, 1, 1)).shape == (3,)


def test_renders_are_clean_and_noise_is_seen_here_and_not_by_the_checker():
    metadata = load_prompts("shapes:held_out:4")
    rng = np.random.default_rng(0)
    images = render_batch([sample_scene(entry, rng, allow_unseen=True) for entry in metadata])
    noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + noise).clamp(0, 1)
    strict = ShapesReward(strict=True)
    prompts = [entry["prompt"] for entry in metadata]
    assert strict.score(images, prompts, metadata).min() == strict.score(noisy, prompts, metadata).min() == 1
    assert score(images).mean() == pytest.approx(0.944, abs=0.01)
    assert score(noisy).mean() < 0.6
