"""This process, its device, and the group of processes it belongs to, outside of a trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch

from rtdmd_lightning.utils.errors import UserError, first_line

MatmulPrecision = Literal["highest", "high", "medium"]


def use_matmul_precision(precision: MatmulPrecision, device: torch.device) -> None:
    """How an accelerator multiplies float32 matrices, told in the log; on a CPU nothing is changed.

    It concerns what is kept in float32: autoencoder, rewards, and a base of that dtype. `high` is TF32 where the device has it.
    """
    if device.type == "cpu":
        return
    from lightning.pytorch.utilities import rank_zero_info  # late, as all of Lightning

    torch.set_float32_matmul_precision(precision)
    rank_zero_info(f"float32 matrix products: {precision} precision (--float32_matmul_precision)")


def allow_cudnn_attention(allowed: bool, device: torch.device) -> None:
    """Whether torch may choose cuDNN's attention on an accelerator, told in the log where it may.

    It is the fastest on Hopper. With torch 2.11 (cuDNN 9.19) its backward pass left its memory at FLUX.1-dev's shapes.
    """
    if device.type == "cpu":
        return
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    if allowed:
        from lightning.pytorch.utilities import rank_zero_info

        rank_zero_info("torch may choose cuDNN's attention (--cudnn_attention)")


TIMEOUT = timedelta(hours=6)
"""How long a process waits for another before it gives up, unless told otherwise: for an evaluation on one rank."""


def synchronize(device: torch.device) -> None:
    """Wait for what this thread has given an accelerator to do, not for what others have (scoring); a CPU has done it."""
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()


def process_device(wanted: str | None) -> torch.device:
    """The device of this process of a machine; by default an accelerator where there is one that works.

    Raises UserError for one that is unknown or not there.
    """
    present = torch.accelerator.current_accelerator(check_available=True)
    try:
        device = of_this_process(torch.device(wanted) if wanted else present or torch.device("cpu"))
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch's for no such name, no such device, not built for it
        raise UserError(f"--device {wanted} cannot be used: {first_line(error)}") from error


def of_this_process(device: torch.device) -> torch.device:
    """Of several accelerators of a kind, the one that a process of this machine should take."""
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are; they wait for each other at the end."""
    if not torch.distributed.is_torchelastic_launched():
        yield 0, 1
        return
    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def closing_process_group() -> Iterator[None]:
    """Leave the process group, if a trainer has made one, when the work is done.

    A gloo worker thread that still holds a tensor when the interpreter goes away aborts the process, and torchrun then calls
    the finished run a failure (pytorch/pytorch#179291); Lightning leaves the group on exit for nccl only. Not after an error:
    leaving waits for collectives under way, which the others may never join. SystemExit is no error: they all agreed on it.
    """
    agreed: SystemExit | None = None
    try:
        yield
    except SystemExit as exit_:
        agreed = exit_
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if agreed is not None:
        raise agreed
