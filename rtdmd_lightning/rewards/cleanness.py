"""How plain a picture of the toy world is painted: a held-out measure for those who train on the checker or on a CLIP."""

import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.shapes.world import COLORS

TOLERANCE = 0.08  # L2 over RGB


class CleannessReward(Reward):
    """The share of pixels that are the picture's ground or exactly one of the palette's colours.

    Renders, whose edges are anti-aliased, reach 0.94. The checker forgives noise, texture, specks and washed-out colours, a
    CLIP may even like them: this sees nothing else, and asks no network.
    """

    name, differentiable = "cleanness", False

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        images = images.detach().float()
        border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
        ground = border.median(dim=-1).values
        palette = torch.tensor(list(COLORS.values()), device=images.device).expand(len(images), -1, -1)
        pixels = images.flatten(2).transpose(1, 2)
        nearest = torch.cdist(pixels, torch.cat([palette, ground[:, None]], dim=1)).amin(dim=-1)
        return (nearest < TOLERANCE).float().mean(dim=-1)
