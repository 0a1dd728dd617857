"""Training pairs of the toy world: random prompts of the training split, each with one picture of it.

Some captions belong to another picture, as on the web. That is what makes the world need CFG: the conditional model rightly
draws such strays too, and guidance away from the unconditional one removes them. Distillation has that gap to close.
"""

import numpy as np
import torch

from rtdmd_lightning.shapes.prompts import training_prompts
from rtdmd_lightning.shapes.render import render_batch
from rtdmd_lightning.shapes.world import sample_scene

# Binding two objects to their places and colours is what takes a model longest, so it is shown most.
TAG_WEIGHTS = {
    "single_object": 0.05,
    "two_object": 0.18,
    "counting": 0.17,
    "colors": 0.10,
    "position": 0.25,
    "color_attr": 0.25,
}
EVEN_WEIGHTS = dict.fromkeys(TAG_WEIGHTS, 1 / len(TAG_WEIGHTS))
# For reinforcement: a group whose images are all right teaches nothing, so what a cold start still gets wrong comes most often.
HARD_WEIGHTS = {
    "single_object": 0.02,
    "two_object": 0.34,
    "counting": 0.16,
    "colors": 0.04,
    "position": 0.14,
    "color_attr": 0.30,
}
CAPTION_NOISE = 0.15


def sample_metadata(rng: np.random.Generator, count: int, weights: dict[str, float] = TAG_WEIGHTS) -> list[dict]:
    """`count` training prompts (GenEval metadata), tags drawn by `weights`."""
    by_tag = [training_prompts(tag) for tag in weights]
    tags = rng.choice(len(by_tag), size=count, p=list(weights.values()))
    return [by_tag[tag][rng.integers(len(by_tag[tag]))] for tag in tags]


def sample_pairs(count: int, *, seed: int, caption_noise: float = CAPTION_NOISE) -> tuple[torch.Tensor, list[str]]:
    """`count` pairs: images `[N, 3, 32, 32]` uint8 and their prompts; the same ones for a seed.

    `caption_noise` is the share of pairs whose prompts are dealt to one another.
    """
    rng = np.random.default_rng(seed)
    metadata = sample_metadata(rng, count)
    images = render_batch([sample_scene(entry, rng) for entry in metadata])
    prompts = np.array([entry["prompt"] for entry in metadata])
    strays = rng.permutation(count)[: round(caption_noise * count)]
    prompts[strays] = np.roll(prompts[strays], 1)
    return (images * 255).round().to(torch.uint8), prompts.tolist()
