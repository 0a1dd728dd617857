"""An accelerator that is not there: tensors on it have shapes and no numbers, autocast and attention follow its rules.

torch makes fake tensors of a CUDA device on any machine, with three gaps that are filled here: code that reads a number gets one;
attention takes the fused kernels that a GPU has (without a driver torch falls back to the unfused one); and the backward pass,
which torch's engine refuses to begin without a driver, is walked through in Python.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorConverter, FakeTensorMode, unset_fake_temporarily

from rtdmd_lightning.planning.backward import releasing, walk_backward

FAKE_DEVICE = torch.device("cuda", 0)
"""Whose rules are followed. Nothing is ever there."""

READ_A_NUMBER = torch.ops.aten._local_scalar_dense.default
NOT_ZERO = torch.ops.aten.nonzero.default
HALF = (torch.float16, torch.bfloat16)


class Unremembered(FakeTensorConverter):
    """Keeps no reference to the fake tensors it makes. `nn.Module.to` refuses fake parameters that others refer to."""

    def set_tensor_memo(self, t: Tensor, v: FakeTensor) -> None:
        return


class ReadableFakeTensors(FakeTensorMode):
    """Fake tensors hold no numbers, so questions about them get a fixed answer.

    Code that reads a number (is the loss finite?) reads 1, or true. Code that asks where a tensor is not zero is told: everywhere
    (every sample has an advantage), and of truth values nowhere (no reward is not finite).
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.fake_tensor_converter = Unremembered(copy_data=False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is READ_A_NUMBER:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is NOT_ZERO:
            found = 0 if args[0].dtype == torch.bool else args[0].numel()
            return args[0].new_empty((found, args[0].dim()), dtype=torch.int64)
        return super().__torch_dispatch__(func, types, args, kwargs)


attention = F.scaled_dot_product_attention  # torch's own, which `faked` replaces


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention in half precision, else the efficient one; torch's own on the CPU."""
    if query.device != FAKE_DEVICE:
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled(FAKE_DEVICE.type):
        dtype = torch.get_autocast_dtype(FAKE_DEVICE.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    aten = torch.ops.aten
    if attn_mask is None and query.dtype in HALF:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def unfaked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with tensors that have numbers, inside `faked` too."""

    def real(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return real


class NoAccelerator(CPUAccelerator):
    """Lightning's of a CPU, which sets nothing up on the fake device."""

    def setup_device(self, device: torch.device) -> None:
        return


def move_trainer(trainer: Trainer) -> None:
    """Let a trainer on one CPU train on the fake device, in its precision; inside `faked`."""
    assert isinstance(trainer.strategy, SingleDeviceStrategy), "one device is faked"
    trainer.strategy._root_device = FAKE_DEVICE
    trainer.strategy.accelerator = NoAccelerator()
    if isinstance(trainer.precision_plugin, MixedPrecision):
        trainer.precision_plugin.device = FAKE_DEVICE.type


class NoStream:
    """Of the fake device, on which nothing is ever under way."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def synchronize(self) -> None:
        return


def _done_at_once(executor: ThreadPoolExecutor, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
    future: Future = Future()
    future.set_result(function(*args, **kwargs))
    return future


@contextmanager
def _replaced(owner: Any, name: str, replacement: Callable) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def faked() -> Iterator[None]:
    """In the body tensors have shapes and no numbers, and `FAKE_DEVICE` works: autocast, fused attention, backward passes."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a module without a trainer warns at each of its logs
        # torch would switch autocast off on a machine without the device.
        stack.enter_context(_replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(_replaced(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True))
        stack.enter_context(_replaced(torch.accelerator, "current_stream", NoStream))
        stack.enter_context(_replaced(torch.autograd, "_engine_run_backward", walk_backward))
        # Gradient checkpointing asks which backward pass it is in, and recomputes a block once in each.
        stack.enter_context(_replaced(torch._C, "_current_graph_task_id", lambda: 0))
        stack.enter_context(_replaced(F, "scaled_dot_product_attention", _fused_attention))
        # Lightning's metrics copy their defaults, which torch does by their storage.
        stack.enter_context(_replaced(FakeTensor, "__deepcopy__", lambda tensor, memo: tensor.detach().clone()))
        # A fake mode is for one thread.
        stack.enter_context(_replaced(ThreadPoolExecutor, "submit", _done_at_once))
        stack.enter_context(releasing())
        stack.enter_context(ReadableFakeTensors())
        yield
