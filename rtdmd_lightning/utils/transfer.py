"""Tensors on their way to the device: together, in one copy for which the host does not wait.

A copy from ordinary memory makes the host wait until the device has done all that it was given before. With eager kernels the
host is hardly ahead of the device, so that every such wait is a gap in the device's work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the CPU, all of one dtype, on the device.

    On an accelerator they are views of one buffer, which lives as long as any of them. On the CPU they are themselves.
    """
    if device.type == "cpu":
        return list(tensors)
    dtypes = {tensor.dtype for tensor in tensors}
    assert len(dtypes) == 1, f"one buffer has one dtype, not {dtypes}"
    sizes = [tensor.numel() for tensor in tensors]
    pinned = torch.accelerator.is_available()  # behind fake and meta tensors there is none
    buffer = torch.empty(sum(sizes), dtype=dtypes.pop(), pin_memory=pinned)
    torch.cat([tensor.flatten() for tensor in tensors], out=buffer)
    there = buffer.to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is done
    return [part.view(tensor.shape) for part, tensor in zip(there.split(sizes), tensors, strict=True)]
