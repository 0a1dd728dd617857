"""Attention kernels at the shapes of the published models: how fast, and the same with and without gradient?

A policy ratio starts at 1 only where a forward pass that records a graph computes what one without did.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rtdmd_lightning.benchmarking.probe import Probe

BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SHAPES = [(9, 24, 1357, 64), (9, 24, 1229, 64), (3, 24, 1536, 128)]
"""Batch, heads, tokens, width: SD3.5-M with T5's tokens and with 205 of text, FLUX.1 at 512 px."""

TINY = [(1, 2, 40, 16)]


def attention(probe: Probe) -> None:
    for shape in TINY if probe.small else SHAPES:
        probe.attempt(f"{shape}", of_shape, probe, shape)


def of_shape(probe: Probe, shape: tuple[int, int, int, int]) -> None:
    batch, heads, tokens, width = shape
    torch.manual_seed(0)
    # As the transformers make them: [B, tokens, heads, width], transposed.
    made = [torch.randn(batch, tokens, heads, width, device=probe.device).to(torch.bfloat16) for _ in range(4)]
    query, key, value, gradient = (tensor.transpose(1, 2) for tensor in made)
    inputs = tuple(tensor.requires_grad_() for tensor in (query, key, value))
    outputs: dict[str, Tensor] = {}
    for name, backend in BACKENDS.items():
        try:
            outputs[name] = of_backend(probe, f"{shape} {name}", backend, inputs, gradient)
        except RuntimeError as error:  # torch's for a kernel that there is not, or not for this shape
            probe.row(f"{shape} {name}", "not available", note=str(error).partition("\n")[0][:80])
    for name in outputs.keys() - {"math"}:
        off = float((outputs[name].float() - outputs["math"].float()).abs().max())
        probe.row(f"{shape} {name}: furthest from math's", off)


def of_backend(
    probe: Probe, title: str, backend: SDPBackend | None, inputs: tuple[Tensor, ...], gradient: Tensor
) -> Tensor:
    """Times and compares one kernel; returns what it computes."""
    query, key, value = inputs
    attend = partial(F.scaled_dot_product_attention, query, key, value)
    context: AbstractContextManager = nullcontext() if backend is None else sdpa_kernel(backend)
    with context:
        with torch.no_grad():
            without, again = attend(), attend()
        recorded = attend()
        first = torch.autograd.grad(recorded, inputs, gradient, retain_graph=True)
        second = torch.autograd.grad(recorded, inputs, gradient)
        repeats = 2 if backend is SDPBackend.MATH else 5
        with torch.no_grad():
            forward = probe.clock(attend, repeats, 1)
        both = probe.clock(lambda: torch.autograd.grad(attend(), inputs, gradient), repeats, 1)
    same = torch.equal(without, recorded)
    notes = [
        f"with backward {both * 1e3:.2f} ms",
        f"with and without gradient {'the same' if same else 'not the same'}",
    ]
    notes += [] if torch.equal(without, again) else ["forward differs from call to call"]
    notes += [] if all(map(torch.equal, first, second)) else ["backward differs from call to call"]
    probe.row(title, forward * 1e3, "ms", good=same, note=", ".join(notes))
    return without
