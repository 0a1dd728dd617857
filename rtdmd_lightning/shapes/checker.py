"""A rule-based detector for images of the toy world, and the score of an image against its prompt.

Ground, then connected components of what is not ground, then each component's colour (nearest palette entry, by vote of
its pixels) and shape (best overlap with a template of the component's own area and centroid, so that sub-pixel positions and
soft edges do not matter). What fits no template well is no detection.
"""

import numpy as np
import torch
from scipy import ndimage

from rtdmd_lightning.geneval.score import Detection, GenEvalScore, geneval_score
from rtdmd_lightning.shapes.render import AREA_OF_UNIT, CENTROID_OF_UNIT, signed_distance
from rtdmd_lightning.shapes.world import COLORS, SHAPES

FOREGROUND_DISTANCE = 0.35  # from the ground, L2 over RGB: about half way up an anti-aliased edge
MIN_SIDE, MAX_SIDE = 6, 16  # pixels; objects are 9 to 12 wide
MIN_OVERLAP = 0.75  # intersection over union with the best template
MIN_COLOR_SHARE = 0.6  # of a component's pixels that must vote for its colour
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
_COLOR_NAMES = list(COLORS)
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def detect(image: np.ndarray) -> list[Detection]:
    """Objects in one `[H, W, 3]` image in [0, 1]."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    foreground = np.linalg.norm(image - ground, axis=-1) > FOREGROUND_DISTANCE
    labels, _ = ndimage.label(foreground, structure=_EIGHT_NEIGHBOURS)
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
            continue
        color, share = _color_vote(image[rows, columns][labels[rows, columns] == index])
        shape, overlap = _best_shape(_coverage(image, ground, color, labels, index))
        if overlap >= MIN_OVERLAP and share >= MIN_COLOR_SHARE:
            box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
            found.append(Detection(shape, color, box, overlap))
    return found


def check(images: torch.Tensor, metadata: list[dict]) -> list[GenEvalScore]:
    """Score `[B, 3, H, W]` images in [0, 1] against B prompts' metadata."""
    arrays = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    return [geneval_score(detect(image), entry) for image, entry in zip(arrays, metadata, strict=True)]


def _color_vote(pixels: np.ndarray) -> tuple[str, float]:
    nearest = np.linalg.norm(pixels[:, None] - _PALETTE, axis=-1).argmin(axis=1)
    votes = np.bincount(nearest, minlength=len(_PALETTE))
    return _COLOR_NAMES[votes.argmax()], float(votes.max() / len(pixels))


def _coverage(image: np.ndarray, ground: np.ndarray, color: str, labels: np.ndarray, index: int) -> np.ndarray:
    """How much of each pixel the component covers, `[H, W]` in [0, 1]: the way from the ground to its colour, over it
    and its one-pixel rim."""
    towards = np.asarray(COLORS[color], dtype=np.float32) - ground
    along = (image - ground) @ towards / (towards @ towards)
    near = ndimage.binary_dilation(labels == index, structure=_EIGHT_NEIGHBOURS)
    return np.where(near, np.clip(along, 0, 1), 0)


def _best_shape(coverage: np.ndarray) -> tuple[str, float]:
    """The shape whose template overlaps best, and that overlap (soft intersection over union)."""
    rows, columns = np.arange(coverage.shape[0]) + 0.5, np.arange(coverage.shape[1]) + 0.5
    area = coverage.sum()
    x, y = (coverage.sum(0) @ columns) / area, (coverage.sum(1) @ rows) / area
    overlaps = []
    for shape in SHAPES:
        radius = np.sqrt(area / AREA_OF_UNIT[shape])
        dx, dy = columns[None, :] - x, rows[:, None] - (y - CENTROID_OF_UNIT[shape] * radius)
        template = np.clip(0.5 - signed_distance(shape, dx, dy, radius), 0, 1)
        overlaps.append(np.minimum(coverage, template).sum() / np.maximum(coverage, template).sum())
    best = int(np.argmax(overlaps))
    return SHAPES[best], float(overlaps[best])
