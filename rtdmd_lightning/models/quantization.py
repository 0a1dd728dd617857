"""Frozen weights of few bits: the linear layers of a transformer's blocks, quantised where they lie.

Only what is frozen may be quantised. Adapters on top of it keep their dtype, and gradients flow through it: the weights are
turned back into the layer's dtype for every product.
"""

import importlib.util
from typing import Literal

import torch
from torch import nn

from rtdmd_lightning.utils.errors import require

Quantization = Literal["none", "int8", "fp8", "nf4"]

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}

BYTES_OF_A_WEIGHT = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
"""nf4 keeps a float32 scale for each 64 weights; the others one for each row, which is left out here."""


def check_quantization(kind: Quantization) -> None:
    """Raises UserError where the package that the kind needs is not installed."""
    if kind == "none":
        return
    package = PACKAGES[kind]
    require(
        importlib.util.find_spec(package) is not None,
        f"the backbone's quantization {kind} needs {package}, which is not installed: pip install {package}",
    )


def quantize(transformer: nn.Module, kind: Quantization, blocks: tuple[type[nn.Module], ...]) -> None:
    """Replace the weights of all linear layers inside the blocks; embeddings and the output layer stay as they are."""
    if kind == "none":
        return
    for module in transformer.modules():
        if isinstance(module, blocks):
            _to_nf4(module) if kind == "nf4" else _to_eight_bits(module, kind)


def _to_eight_bits(block: nn.Module, kind: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(block, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


def _to_nf4(block: nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, layer in list(block.named_modules()):
        if type(layer) is nn.Linear:
            with torch.device("meta"):
                small = Linear4bit(layer.in_features, layer.out_features, compute_dtype=layer.weight.dtype)
            small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            small.bias = layer.bias
            block.set_submodule(path, small.to(layer.weight.device))
