"""What an accelerator needs and a CPU does not."""

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator still has to do; a CPU has done it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
