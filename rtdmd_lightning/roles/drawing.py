"""Drawing images with a few-step sampler and any velocity: the one way in which this project does it.

Images that are looked at or evaluated come from `draw`: the evaluation callback's, those of `evaluate`, `sample` and the demo.
Rollouts that are trained on come from `roll_out`, in the precision of the training step that they belong to.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.sampling.sampler import Sampler, StepNoise
from rtdmd_lightning.sampling.structures import Conditioning, Trajectory
from rtdmd_lightning.utils.randomness import SampleRandom

ConditionalVelocity = Callable[[Tensor, float, Conditioning], Tensor]
"""Latents at a level with their conditioning to their velocity."""


@torch.no_grad()
def roll_out(
    backbone: Backbone,
    sampler: Sampler,
    velocity: ConditionalVelocity,
    conditioning: Conditioning,
    random: SampleRandom,
    *,
    steps: int | None = None,
    step_noise: StepNoise | None = None,
    state_dtype: torch.dtype | None = None,
) -> Trajectory:
    """A rollout from each sample's own noise, without gradient; `step_noise` replaces that of the steps."""
    shape = backbone.latent_shape()
    count = sampler.steps if steps is None else steps
    own = [] if step_noise else [f"step {step}" for step in range(count)]
    random = random.ahead(dict.fromkeys(["start", *own], shape))
    return sampler.rollout(
        lambda latents, sigma: velocity(latents, sigma, conditioning),
        random.normal("start", shape),
        step_noise=step_noise or (lambda step: random.normal(f"step {step}", shape)),
        steps=steps,
        state_dtype=state_dtype,
    )


def draw(
    backbone: Backbone,
    sampler: Sampler,
    velocity: ConditionalVelocity,
    conditioning: Conditioning,
    random: SampleRandom,
) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1]; sample i's depends on its conditioning and its own random numbers alone.

    Autocast is off: an image has the precision of the weights, as in diffusers' pipelines, whoever asks for it.
    """
    with torch.autocast(random.device.type, enabled=False):
        return decode(backbone, roll_out(backbone, sampler, velocity, conditioning, random).samples)


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor) -> Tensor:
    """Clean latents to images `[B, 3, H, W]`, cut off to [0, 1]."""
    return backbone.decode(latents).clamp(0, 1)
