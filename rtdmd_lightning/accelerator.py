"""This process and its device, outside of a trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator still has to do; a CPU has done it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def process_device(wanted: str | None) -> torch.device:
    """The device of this process of a machine; by default an accelerator where there is one that works."""
    present = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(wanted) if wanted else present or torch.device("cpu")
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are; they wait for each other at the end."""
    if not torch.distributed.is_torchelastic_launched():
        yield 0, 1
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
