"""Scenes to pixels, anti-aliased by signed distance."""

import numpy as np
import torch

from rtdmd_lightning.shapes.world import COLORS, IMAGE_SIZE, Scene

SQUARE_HALF_SIDE, CROSS_ARM = 0.92, 0.42  # in units of the radius
# Area and downward centroid offset of each shape at radius 1; `signed_distance` draws exactly these.
AREA_OF_UNIT = {
    "circle": np.pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 2.0,
    "cross": 8 * CROSS_ARM - 4 * CROSS_ARM**2,
}
CENTROID_OF_UNIT = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3, "cross": 0.0}
_PIXEL_CENTRES = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels (negative inside) of the offsets `dx`, `dy` from the centre of a shape of that radius."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_HALF_SIDE * radius
    if shape == "triangle":
        return np.maximum(dy - radius, (2 * np.abs(dx) - (dy + radius)) / np.sqrt(5.0))
    if shape == "cross":
        arm = CROSS_ARM * radius
        return np.minimum(
            np.maximum(np.abs(dx) - radius, np.abs(dy) - arm), np.maximum(np.abs(dx) - arm, np.abs(dy) - radius)
        )
    raise ValueError(f"unknown shape {shape!r}")


def render(scene: Scene) -> np.ndarray:
    """`[32, 32, 3]` float32 in [0, 1]."""
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), scene.ground, dtype=np.float32)
    for obj in scene.objects:
        distance = signed_distance(
            obj.shape, _PIXEL_CENTRES[None, :] - obj.x, _PIXEL_CENTRES[:, None] - obj.y, obj.radius
        )
        coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        image += coverage * (np.asarray(COLORS[obj.color], dtype=np.float32) - image)
    return image


def render_batch(scenes: list[Scene]) -> torch.Tensor:
    """`[B, 3, 32, 32]` float32 in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).contiguous()
