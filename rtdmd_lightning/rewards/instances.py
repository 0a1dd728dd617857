"""What a Mask2Former saw in a batch of images, with one question to the device.

It is transformers' `post_process_instance_segmentation`, which asks the device three times for each of a hundred queries of
each image, and each time waits for all that is queued there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = (384, 384)
"""Where masks are weighed, whatever the size of the image."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Segment:
    """One object found: the number of its class, a confidence in [0, 1], its mask `[H, W]`, boolean and on the detector's device,
    and the box `(x0, y0, x1, y1)` around it in pixels, right and bottom exclusive."""

    label: int
    score: float
    mask: Tensor
    box: Box


def instances(outputs: Any, size: tuple[int, int], thresholds: Sequence[float]) -> list[list[Segment]]:
    """What is seen in each of B images of `size` (height, width) with more than that image's confidence, in no order.

    Args:
        outputs: with `class_queries_logits` `[B, Q, classes + 1]` and `masks_queries_logits` `[B, Q, h, w]`.
        size: of the images and so of the masks.
        thresholds: B.
    """
    images = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
    seen = [weighed(classes, masks, size) for classes, masks in images]
    rows = torch.stack([table for table, _ in seen]).tolist()
    found = []
    for of_image, (_, masks), threshold in zip(rows, seen, thresholds, strict=True):
        segments = []
        for (score, label, *box), mask in zip(of_image, masks, strict=True):
            x0, y0, x1, y1 = map(int, box)
            if x1 > x0 and round(score, 6) > threshold:
                segments.append(Segment(int(label), round(score, 6), mask, (x0, y0, x1, y1)))
        found.append(segments)
    return found


def weighed(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of one image the Q likeliest pairs of a query and a class: `[Q, 6]` float64 and their masks `[Q, H, W]`, boolean.

    The table holds confidence (the class's probability times the mean one of the mask's pixels), class and box.
    """
    queries, classes = len(class_logits), class_logits.shape[-1] - 1
    probabilities, best = class_logits.softmax(-1)[:, :-1].flatten().topk(queries, sorted=False)
    logits = F.interpolate(mask_logits[None], CANVAS, mode="bilinear", align_corners=False)[0][best // classes]
    inside = (logits > 0).float()
    confidence = (logits.sigmoid().flatten(1) * inside.flatten(1)).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    masks = F.interpolate(inside[None], size, mode="nearest")[0].bool()
    table = torch.cat([(probabilities * confidence)[:, None], (best % classes)[:, None], boxes(masks)], dim=1)
    return table.double(), masks


def boxes(masks: Tensor) -> Tensor:
    """`[N, H, W]` boolean to the boxes `[N, 4]`, see `Segment`; x1 is 0 where a mask is empty."""
    ranges = []
    for other in (-2, -1):
        reached = masks.any(dim=other)
        positions = torch.arange(reached.shape[-1], device=masks.device)
        first = positions.where(reached, reached.shape[-1]).amin(dim=-1)
        ranges.append((first, (positions + 1).where(reached, 0).amax(dim=-1)))
    (x0, x1), (y0, y1) = ranges
    return torch.stack([x0, y0, x1, y1], dim=1)
