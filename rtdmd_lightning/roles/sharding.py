"""FSDP2: shard a transformer block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


@dataclass(frozen=True)
class Sharding:
    """How transformers are sharded.

    mesh: of one dimension, over which parameters are sharded; or of two, replicas and shards.
    reshard_after_forward: free a block's gathered weights after its forward pass and gather them again for the backward pass;
        false keeps them in between.
    prefetch: how many blocks ahead are gathered while one computes; 0 leaves it to FSDP2.
    """

    mesh: DeviceMesh
    reshard_after_forward: bool = True
    prefetch: int = 1


def shard(
    transformer: nn.Module,
    sharding: Sharding,
    blocks: tuple[type[nn.Module], ...],
    bring: Callable[[nn.Module], None],
) -> None:
    """`fully_shard` every block, then what is left; `bring` puts the weights into each of these right before.

    So a device holds no more than its shards and one whole block. Gradients are reduced in float32, and averaged over both
    dimensions of a mesh that has two. Parameters keep their own dtypes (frozen base in the backbone's, adapters in float32):
    autocast, set by the trainer's precision, decides what is computed in.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    units = [module for module in transformer.modules() if isinstance(module, blocks)]
    for unit in units:
        bring(unit)
        fully_shard(unit, mesh=sharding.mesh, mp_policy=policy, reshard_after_forward=sharding.reshard_after_forward)
    bring(transformer)
    fully_shard(transformer, mesh=sharding.mesh, mp_policy=policy)
    if sharding.prefetch:
        _prefetch([unit for unit in units if isinstance(unit, FSDPModule)], sharding.prefetch)


def _prefetch(units: list[FSDPModule], count: int) -> None:
    """While a block computes, the `count` blocks after it are gathered, in the backward pass those before it."""
    for position, unit in enumerate(units):
        unit.set_modules_to_forward_prefetch(units[position + 1 : position + 1 + count])
        unit.set_modules_to_backward_prefetch(units[max(0, position - count) : position][::-1])


def reshard(transformer: nn.Module) -> None:
    """Free what is gathered of a transformer, so that its next pass sees its shards as they are now."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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
