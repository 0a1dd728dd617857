"""Bytes that tensors hold, counted as they come and go: of real tensors and of fake ones alike."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ASKS_FOR_METADATA = torch.ops.prim.device.default


class AllocationTracker(TorchDispatchMode):
    """Counts the storages that operations make while it is active, each once however many tensors share it.

    `current` falls when a storage is let go, also outside of the mode; `peak` is the highest `current` since `restart`. What a
    kernel uses inside itself is not seen.

    Args:
        device: whose bytes are counted; None: of all.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.device = device
        self.current = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count what was made before."""
        for tensor in tensors:
            self._count(tensor)

    def restart(self) -> None:
        """Let `peak` begin anew at what is held now."""
        self.peak = self.current

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **kwargs or {})
        if func is not ASKS_FOR_METADATA:
            for value in tree_iter(result):
                if isinstance(value, Tensor):
                    self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size or self.device not in (None, tensor.device):
            return
        self._known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size
