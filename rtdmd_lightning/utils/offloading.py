"""Frozen networks that lie in CPU memory, and on the device only while they are used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Offloaded:
    """Their weights are never written, so they are copied to the device, and the copy is dropped: nothing is copied back.

    On an accelerator their home is pinned memory, from which a copy waits for nothing. A weight that several modules share stays
    one.

    Args:
        networks: frozen, wherever they are now; their home is made of them, on the CPU.
        device: where they work.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        modules = [module for network in networks for module in network.modules()]
        self._tables: list[dict[str, Any]] = [
            table for module in modules for table in (module._parameters, module._buffers)
        ]
        self._uses = 0
        self._replace(lambda tensor: home_of(tensor, device))
        self._homes = [dict(table) for table in self._tables]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """On the device in the body; uses may nest."""
        self._uses += 1
        if self._uses == 1:
            self._replace(lambda tensor: tensor.to(self.device, non_blocking=True))
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                for table, home in zip(self._tables, self._homes, strict=True):
                    table.update(home)

    def _replace(self, made_of: Callable[[Tensor], Tensor]) -> None:
        """Every weight and buffer by what is made of it, each once."""
        made: dict[int, Tensor] = {}
        for table in self._tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    there = made_of(tensor)
                    is_bare = isinstance(tensor, nn.Parameter) and not isinstance(there, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(there, requires_grad=False) if is_bare else there
                table[name] = made[id(tensor)]


def home_of(tensor: Tensor, device: torch.device) -> Tensor:
    """In CPU memory, of what works on the device. What a library has quantised is of another kind, which cannot be pinned."""
    there = tensor.to("cpu")
    pinned = device.type != "cpu" and torch.accelerator.is_available()  # behind fake tensors there is none
    return there.pin_memory() if pinned and type(tensor) in (Tensor, nn.Parameter) else there
