"""Strict scores per tag, and pictures of the toy world's teacher to compare with."""

from collections.abc import Callable

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from rtdmd_lightning.shapes.checker import check
from rtdmd_lightning.utils.randomness import keyed_generator


def strict_scores(images: Tensor, metadata: list[dict]) -> dict[str, float]:
    """Share of `[B, 3, H, W]` images that are exactly right: under `all`, and under each tag."""
    strict = torch.tensor([score.strict for score in check(images, metadata)]).double()
    tags = [entry["tag"] for entry in metadata]
    by_tag = {tag: float(strict[[other == tag for other in tags]].mean()) for tag in dict.fromkeys(tags)}
    return {"all": float(strict.mean())} | by_tag


def draw_in_batches(draw: Callable[[list[int]], Tensor], count: int, batch_size: int = 100) -> Tensor:
    """Images 0 to `count`, drawn `batch_size` at a time by a function of their indices."""
    return torch.cat([draw(list(range(i, min(i + batch_size, count)))) for i in range(0, count, batch_size)])


@torch.no_grad()
def teacher_images(
    pipeline: StableDiffusion3Pipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance_scale: float,
    max_sequence_length: int,
    seed: int,
) -> Tensor:
    """`[B, 3, H, W]` in [0, 1] from the diffusers pipeline itself (Euler steps); image i's noise is its own."""
    pipeline.set_progress_bar_config(disable=True)
    return draw_in_batches(
        lambda indices: (
            pipeline(
                [prompts[index] for index in indices],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                max_sequence_length=max_sequence_length,
                generator=[keyed_generator(seed, index, "start") for index in indices],
                output_type="pt",
            ).images
        ),
        len(prompts),
    )
