"""A linear layer whose weight is frozen and kept in few bits.

    int8    W = s·Q,  Q = round(W / s) in -127..127,   s = max|row| / 127
    fp8     W = s·Q,  Q = W / s in float8_e4m3fn,      s = max|row| / 448
    nf4     bitsandbytes' NormalFloat (QLoRA, arXiv 2305.14314): a table of 16 numbers, s = max|block of 64|

The weight exists in the dtype of a product for the length of that product, in the backward pass too: autograd keeps the
few bits, not their product's operand. Where the bits are offloaded they lie in CPU memory, and are copied to the device as often.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdmd_lightning.utils.offloading import home_of

Bits = Literal["int8", "fp8", "nf4"]

FP8 = torch.float8_e4m3fn
LARGEST = {"int8": 127.0, "fp8": torch.finfo(FP8).max}
NF4_BLOCK = 64
BYTES_OF_A_WEIGHT: dict[str, float] = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / NF4_BLOCK}
"""nf4's float32 scales included; the others keep one for each row, which is left out."""


def pack(weight: Tensor, kind: Bits) -> tuple[Tensor, Tensor]:
    """A weight `[out, in]` as bits and float32 scales.

    int8: int8 `[out, in]` and `[out, 1]`; fp8: the same in uint8 (not all collectives know float8); nf4: uint8 `[out·in/2, 1]`
    and `[out·in/64]`.
    """
    if kind == "nf4":
        import bitsandbytes  # noqa: F401  registers the operators

        return torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), NF4_BLOCK, "nf4", torch.uint8)
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST[kind]).clamp(min=torch.finfo(torch.float32).tiny)
    if kind == "int8":
        return (weight / scale).round().to(torch.int8), scale
    return (weight / scale).to(FP8).view(torch.uint8), scale


def unpack(packed: Tensor, scale: Tensor, kind: Bits, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """What `pack` was given, in `dtype`, rounded to the kind's numbers."""
    if kind == "nf4":
        return torch.ops.bitsandbytes.dequantize_4bit(packed, scale, NF4_BLOCK, "nf4", shape, dtype)
    return (packed if kind == "int8" else packed.view(FP8)).to(dtype).mul_(scale)


class FrozenLinear(nn.Module):
    """Takes the place of an `nn.Linear`, and computes in the dtype that it would: autocast's, or that of the input.

    Args:
        linear: where its weight is.
        kind: of the bits.
        offloaded: keep them in CPU memory, wherever the module is moved.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: Bits, offloaded: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        packed, scale = pack(linear.weight.data, kind)
        if offloaded:  # plain tensors, which `to` does not move
            self.packed, self.scale = (home_of(bits, bits.device) for bits in (packed, scale))
        else:  # parameters, for DDP sends buffers at every step
            self.packed, self.scale = (nn.Parameter(bits, requires_grad=False) for bits in (packed, scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, self.packed, self.scale, self.kind, (self.out_features, self.in_features), bias)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that it computes with, `[out, in]`."""
        return unpack(self.packed, self.scale, self.kind, (self.out_features, self.in_features), dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind}"


class _Product(torch.autograd.Function):
    """`x Wᵀ + b`, with a gradient for x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, kind: Bits, shape: tuple[int, int], bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.kind, ctx.shape = kind, shape
        return functional.linear(x, _unpack_for(x, packed, scale, kind, shape), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        packed, scale = ctx.saved_tensors
        return grad @ _unpack_for(grad, packed, scale, ctx.kind, ctx.shape), None, None, None, None, None


def _unpack_for(x: Tensor, packed: Tensor, scale: Tensor, kind: Bits, shape: tuple[int, int]) -> Tensor:
    """A weight on the device of what it is multiplied with, and in its dtype."""
    packed, scale = (bits.to(x.device, non_blocking=True) for bits in (packed, scale))
    return unpack(packed, scale, kind, shape, x.dtype)
