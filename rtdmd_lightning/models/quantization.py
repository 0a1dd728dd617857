"""Which frozen weights are kept in few bits, and what it takes: the linear layers of a transformer's blocks.

They are replaced block by block where they lie, adapters beside them left alone. diffusers' own quantization configs are not
used: its loader refuses bitsandbytes without a GPU, torchao's tensors keep a whole copy of each weight for the backward pass
and know nothing of autocast, and a base that another process reads (`broadcast.py`) is never loaded at all.
"""

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from rtdmd_lightning.models.frozen_linear import Bits, FrozenLinear
from rtdmd_lightning.utils.errors import UserError, first_line, require

Quantization = Literal["none", "int8", "fp8", "nf4"]

PACKAGE = "bitsandbytes"
"""What nf4 needs; the others are PyTorch's own."""


def check_installed(kind: Quantization) -> None:
    """Raises UserError where the package that the kind needs is not installed."""
    require(
        kind != "nf4" or importlib.util.find_spec(PACKAGE) is not None,
        f"the backbone's quantization nf4 needs {PACKAGE}, which is not installed: pip install {PACKAGE}",
    )


def check_device(kind: Quantization, device: torch.device) -> None:
    """Raises UserError where a small layer cannot be quantised and back-propagated through on the device."""
    if kind == "none":
        return
    check_installed(kind)
    try:
        with torch.inference_mode(False), torch.enable_grad():  # wherever it is asked
            layer = nn.utils.skip_init(nn.Linear, 64, 64, device=device, dtype=torch.bfloat16)  # no random numbers
            x = torch.ones(2, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
            FrozenLinear(layer, kind)(x).sum().backward()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"the backbone's quantization {kind} does not work on {device}: {first_line(error)}; choose another one"
        ) from error


def quantize(
    transformer: nn.Module,
    kind: Bits,
    blocks: tuple[type[nn.Module], ...],
    device: torch.device,
    bring: Callable[[nn.Module], None] | None = None,
    offloaded: bool = False,
) -> None:
    """Replace the linear layers inside the blocks; embeddings, the output layer and adapters stay as they are.

    Every block is brought (`WeightBroadcast`) and moved to the device right before, so that the device holds one block as it
    was read. The bits stay there, or with `offloaded` in CPU memory.
    """
    for block in [module for module in transformer.modules() if isinstance(module, blocks)]:
        if bring is not None:
            bring(block)
        _quantize_block(block.to(device), kind, offloaded)


def _quantize_block(block: nn.Module, kind: Bits, offloaded: bool) -> None:
    for path, layer in list(block.named_modules()):
        if isinstance(layer, nn.Linear) and ".lora_" not in path:
            block.set_submodule(path, FrozenLinear(layer, kind, offloaded))
