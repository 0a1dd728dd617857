"""GenEval's rule for "left of" and its kin (METHOD section 6)."""

import numpy as np

POSITION_THRESHOLD = 0.1
DIRECTION_COSINE = 0.5


def spatial_relations(box: tuple[float, ...], other: tuple[float, ...]) -> set[str]:
    """Which of GenEval's four relations the first box has to the second.

    The offset between the centres is shrunk, per axis, by `POSITION_THRESHOLD` times the summed sizes; a relation holds
    where what is left, over the length of the whole offset, exceeds `DIRECTION_COSINE` (METHOD section 6).
    """
    a, b = np.asarray(box, dtype=float), np.asarray(other, dtype=float)
    offset = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    sizes = (a[2:] - a[:2]) + (b[2:] - b[:2])
    length = np.linalg.norm(offset)
    if length == 0:
        return set()
    dx, dy = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) / length
    held = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, cosine in held.items() if cosine > DIRECTION_COSINE}
