"""What CLIP's image processor does to a picture, done in tensors so that gradients reach the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor
from transformers import CLIPImageProcessor

from rtdmd_lightning.utils.errors import UserError

Resize = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ClipPreprocess:
    """Resize of the shorter side, centre crop, normalisation: `[B, 3, H, W]` in [0, 1] to `[B, 3, crop, crop]`.

    The bicubic resize is PIL's, and so the published processors': antialiased, horizontal pass first, cut off after each pass
    where the kernel overshoots black or white. (PIL shrinks pictures that are twice as tall as wide the other way round, which
    tells where the overshoot is cut.) PIL besides rounds to whole grey levels before and after each pass; nothing is rounded
    here, since a rounded picture has no gradient. So a pixel differs from the processor's by about one level (1/255) at most,
    by chance up or down, and a score by far less.

    The bilinear resize, with its crop, is torchvision's default on tensors, which the authors use (METHOD section 5.1).
    A picture whose shorter side has the right length already is not resized by either.

    Args:
        shorter_side: its pixels after the resize.
        crop: side of the square that is cut out of the middle, at most `shorter_side`.
        mean: per channel, subtracted.
        std: per channel, divided by.
        resize: bilinear or bicubic.
    """

    shorter_side: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize = "bicubic"

    @classmethod
    def from_processor(cls, processor: CLIPImageProcessor, resize: Resize = "bicubic") -> "ClipPreprocess":
        """The same steps as a `transformers` processor, with `resize` for its bicubic one.

        Raises UserError for a processor that does other things.
        """
        size, crop = dict(processor.size), dict(processor.crop_size)
        resample = int(processor.resample)
        usual = processor.do_resize and processor.do_center_crop and processor.do_normalize and resample == BICUBIC
        if not usual or "shortest_edge" not in size or crop["height"] != crop["width"]:
            raise UserError(f"an image processor that resizes, crops or normalises otherwise than CLIP's: {processor}")
        if crop["height"] > size["shortest_edge"]:
            raise UserError(f"an image processor that crops {crop} out of a smaller picture, {size}: {processor}")
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        return cls(size["shortest_edge"], crop["height"], mean, std, resize)

    @classmethod
    def from_pretrained(cls, folder: str | Path, resize: Resize = "bicubic") -> "ClipPreprocess":
        return cls.from_processor(CLIPImageProcessor.from_pretrained(folder), resize)

    def __call__(self, images: Tensor) -> Tensor:
        if self.resize == "bilinear":
            images = TF.center_crop(TF.resize(images, [self.shorter_side], antialias=True), [self.crop])
        else:
            images = centre_crop(resize_shorter_side(images, self.shorter_side), self.crop)
        return (images - by_channel(images, self.mean)) / by_channel(images, self.std)


def by_channel(images: Tensor, values: Sequence[float]) -> Tensor:
    """`[C, 1, 1]` beside the images. Filled where they are: a tensor of a list is copied to them, and the copy is waited for."""
    return torch.stack([images.new_full((1, 1), value) for value in values])


BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


def resize_shorter_side(images: Tensor, side: int) -> Tensor:
    """Bicubic: `[B, C, H, W]` in [0, 1] to a shorter side of `side`, the longer one in proportion (rounded down)."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter == side:
        return images
    new_height, new_width = side * height // shorter, side * width // shorter
    for size in ((height, new_width), (new_height, new_width)):
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    return images


def centre_crop(images: Tensor, side: int) -> Tensor:
    """The middle `side` x `side` pixels; an odd rest goes to the bottom and the right."""
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]
