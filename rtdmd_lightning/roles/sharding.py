"""FSDP2: shard a transformer block by block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def gradient_sync_paused(transformers: Sequence[nn.Module]) -> Iterator[None]:
    """Backward passes of these sharded transformers add their gradients up locally instead of reducing them over the ranks."""
    for transformer in transformers:
        _set_gradient_sync(transformer, False)
    try:
        yield
    finally:
        for transformer in transformers:
            _set_gradient_sync(transformer, True)


def _set_gradient_sync(transformer: nn.Module, enabled: bool) -> None:
    assert isinstance(transformer, FSDPModule)
    transformer.set_requires_gradient_sync(enabled)
