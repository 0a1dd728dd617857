"""How different the images of one prompt are: what a reward that is trained on too hard takes away first."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd_lightning.utils.errors import UserError


@dataclass(frozen=True)
class DiversitySettings:
    """Several images for some of the prompts.

    Args:
        prompts: how many, spread over all of them; all where there are fewer.
        images_per_prompt: the size of a group; its first image is the one that the rewards score.
    """

    prompts: int = 20
    images_per_prompt: int = 4

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.images_per_prompt < 2:
            raise UserError(f"diversity wants one or more prompts with two or more images each, not {self}")


def within_prompt_diversity(groups: Tensor) -> Tensor:
    """`[G, K, ...]` to `[G]` float32: over the pairs of a group's K images, the mean of their root mean square difference.

    Of pixels in [0, 1] it lies between 0, where all images of a prompt are the same, and 1. It asks no network, so no reward
    that is one can be fooled together with it.
    """
    flat = groups.flatten(2).float()
    return torch.stack([torch.pdist(group).mean() for group in flat]) / math.sqrt(flat.shape[-1])
