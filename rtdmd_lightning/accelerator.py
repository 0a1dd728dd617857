"""What an accelerator needs and a CPU does not."""

import os

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
