"""Weights that one process reads from disk and sends to the others, so that machines do not hold them once a process."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

READER = 0
"""The rank that reads."""


def reads_weights() -> bool:
    """Whether this process reads weights from disk: the first of its process group does, and one without a group."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == READER


def without_weights(module: nn.Module) -> nn.Module:
    """A module of the meta device with tensors on the CPU that have its shapes and dtypes, and take no memory.

    (PEFT puts an adapter on the device of its layer, and one on the meta device would lose its initial weights.)
    """
    return module._apply(lambda tensor: torch.empty((), dtype=tensor.dtype, device="cpu").expand(tensor.shape))


class WeightBroadcast:
    """Carries weights from the process that has read them to those that have shapes alone.

    Every process of the group makes one of the same modules, right after they are loaded, and calls it with the same modules
    in the same order. What has been added to a module since then (adapters) is left alone. Without a group it does nothing.

    Args:
        modules: with weights on the reader, `without_weights` elsewhere.
        device: where the weights go, on every process.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self._awaited: set[Tensor] = set()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            self._awaited = {tensor for module in modules for tensor in _tensors(module)}

    def __call__(self, module: nn.Module) -> None:
        """Bring what has not arrived yet of a module's weights to the device: one tensor after the other."""
        for tensor in _tensors(module):
            if tensor in self._awaited:
                self._awaited.remove(tensor)
                tensor.data = self._sent(tensor.data)

    def _sent(self, weights: Tensor) -> Tensor:
        if reads_weights():
            arrived = weights.to(self.device).contiguous()
        else:
            arrived = torch.empty(weights.shape, dtype=weights.dtype, device=self.device)
        torch.distributed.broadcast(
            arrived.reshape(-1).view(torch.uint8), src=READER
        )  # bytes: every dtype, every backend
        return arrived


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
