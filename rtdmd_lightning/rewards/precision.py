"""A network in half precision between images and scores that are not: what rounds is the network alone, forward and backward."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rtdmd_lightning.utils.errors import require

TowerDtype = Literal["float32", "bfloat16", "float16"]
TOWER_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Those that a reward's network may have, by their names in a config."""


def tower_dtype(reward: str, name: str) -> torch.dtype:
    """By its name. Raises UserError for another one."""
    require(name in TOWER_DTYPES, f"{reward}: dtype must be one of {', '.join(TOWER_DTYPES)}, not {name!r}")
    return TOWER_DTYPES[name]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Of images, embeddings and scores around a network of that dtype."""
    return torch.promote_types(dtype, torch.float32)


def in_precision(network: Callable[[Tensor], Tensor], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """`network(inputs)` computed in its dtype; `inputs` and the result are float32 (or wider).

    In float16 its gradient is computed as if the largest of the result's were 1, since a reward's are far below what float16 has.
    """
    if dtype != torch.float16 or not inputs.requires_grad:
        return network(inputs.to(dtype)).to(at_least_float32(dtype))
    largest: list[Tensor] = []

    def enlarge(gradient: Tensor) -> Tensor:
        largest[:] = [gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny)]
        return gradient / largest[0]

    entering = inputs.view_as(inputs)
    entering.register_hook(lambda gradient: gradient * largest[0])
    leaving = network(entering.to(dtype)).float()
    leaving.register_hook(enlarge)
    return leaving
