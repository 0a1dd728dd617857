"""Numbers that describe an adapter: pure functions of its matrices."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from rtdmd_lightning.roles.adapter import Adapter, LayerUpdate

NEAR = 3.0
"""A factor: training widens A a little (on the toy world 1.4 times in the generator, 1.7 times in the fake score)."""


@dataclass(frozen=True)
class LayerKind:
    """The layers that differ in the number of their block only.

    Args:
        shapes: of their weights, `(out, in)`, each once.
        layers: how many they are.
        std: standard deviation of A, the mean over layers.
        norm: Frobenius norm of the update `scale * B @ A`, the mean over layers.
    """

    shapes: list[tuple[int, int]]
    layers: int
    std: float
    norm: float


def kind_of(path: str) -> str:
    """A layer's path with a star for the number of its block: `transformer_blocks.*.attn.to_out.0`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", path, count=1)


def by_kind(adapter: Adapter) -> dict[str, LayerKind]:
    """The adapter's layers by `kind_of` their path, in the order in which the kinds first appear."""
    groups: dict[str, list[LayerUpdate]] = {}
    for path, update in adapter.layers.items():
        groups.setdefault(kind_of(path), []).append(update)
    return {kind: _summary(updates) for kind, updates in groups.items()}


def update_norm(update: LayerUpdate) -> float:
    """Frobenius norm of `scale * B @ A` without the product: `|BA|^2 = tr((B^T B)(A A^T))`, of which both are `[r, r]`."""
    down, up = update.down.double(), update.up.double()
    squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)  # rounding may leave less than nothing of a zero
    return abs(update.scale) * math.sqrt(squared)


def std_of(matrix: Tensor) -> float:
    """Standard deviation of all entries."""
    return matrix.double().std(correction=0).item()


def not_finite(state: Mapping[str, Tensor]) -> dict[str, int]:
    """How many entries are NaN or infinite, by key; keys without any are left out."""
    counts = {key: int((~torch.isfinite(value)).sum()) for key, value in state.items()}
    return {key: count for key, count in counts.items() if count}


def told_by_a(adapter: Adapter) -> str:
    """A sentence on which stage's A the adapter's looks like, by its standard deviation (METHOD section 4).

    The cold start's A begins with 1/rank, that of the authors' stage 2 with 1, and training moves it little.
    """
    std = fmean(std_of(update.down) for update in adapter.layers.values())
    start = fmean(1 / update.rank for update in adapter.layers.values())
    if not math.isfinite(std):
        told = "A has values that are not finite, and does not tell the stage"
    elif start * NEAR**2 >= 1:
        told = "A of so low a rank does not tell the stage"
    elif 1 / NEAR <= std / start <= NEAR:
        told = "A looks like a cold start's"
    elif 1 / NEAR <= std <= NEAR:
        told = "A looks like that of the authors' stage 2"
    else:
        told = "A looks neither like a cold start's nor like that of the authors' stage 2"
    return (
        f"{told}: its standard deviation is {std:.3g} (mean over layers); a cold start begins with 1/rank = {start:.3g}, the "
        "authors' stage 2 with 1."
    )


def _summary(updates: list[LayerUpdate]) -> LayerKind:
    return LayerKind(
        shapes=sorted({update.shape for update in updates}),
        layers=len(updates),
        std=fmean(std_of(update.down) for update in updates),
        norm=fmean(update_norm(update) for update in updates),
    )
