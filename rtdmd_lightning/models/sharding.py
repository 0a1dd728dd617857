"""FSDP2: shard a transformer block by block."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def shard(transformer: nn.Module, mesh: DeviceMesh, blocks: tuple[type[nn.Module], ...]) -> None:
    """`fully_shard` every block, then what is left, over a one-dimensional mesh.

    Gradients are reduced in float32. Parameters keep their own dtypes (frozen base in the backbone's, adapters in float32):
    autocast, set by the trainer's precision, decides what is computed in.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in transformer.modules():
        if isinstance(module, blocks):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)


def set_gradient_sync(transformers: Iterable[nn.Module], enabled: bool) -> None:
    """Whether backward passes of these sharded transformers reduce their gradients over the ranks, or add them up locally."""
    for transformer in transformers:
        assert isinstance(transformer, FSDPModule)
        transformer.set_requires_gradient_sync(enabled)
