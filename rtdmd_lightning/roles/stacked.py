"""LoRA on a frozen linear layer: several adapters at once, in the dtype that the layer computes in.

PEFT's own layer takes its input to float32 and back for each adapter, scales and adds each update in passes of their own, and
is switched layer by layer. Here the update of a whole stack is two matrix products, the second one added into the base's output:

    y = W x + b + s·B (A x),        A = [A_1; A_2; …],  B = [B_1, B_2, …]

The layers are PEFT's otherwise: parameters, names and files are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn


@dataclass
class Selection:
    """Names of the adapters that add their updates. One object serves all layers of a run, so a switch is one assignment."""

    names: tuple[str, ...] = ()


class StackedLinear(Linear):
    """PEFT's `Linear` with a forward pass of its own. None of its adapters is active at first, see `select_together`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.selection = Selection()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., in]` to `[..., out]`, in autocast's dtype or, outside of it, in that of `x`."""
        names = [name for name in self.selection.names if name in self.lora_A]
        if not names:
            return self.base_layer(x)
        device = x.device.type
        if torch.is_autocast_enabled(device):  # once here, not once in each product
            x = x.to(torch.get_autocast_dtype(device))
        rows = x.reshape(-1, x.shape[-1])  # of two dimensions, so that the base's output is no view
        result = self.base_layer(rows).to(rows.dtype)  # a quantised one knows nothing of autocast
        down, up, scale = self._stack(names)
        inner = rows @ down.to(rows.dtype).t()
        return result.addmm_(inner, up.to(rows.dtype).t(), alpha=scale).unflatten(0, x.shape[:-1])

    def _stack(self, names: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        """A and B of several adapters as one, `[rank, in]` and `[out, rank]`, and their scale."""
        downs = [self.lora_A[name].weight for name in names]
        ups = [self.lora_B[name].weight for name in names]
        scale, *others = scales = [self.scaling[name] for name in names]
        if not others:
            return downs[0], ups[0], scale
        if any(other != scale for other in others):
            ups, scale = [up * own for up, own in zip(ups, scales, strict=True)], 1.0
        return torch.cat(downs), torch.cat(ups, dim=1), scale


def inject(transformer: nn.Module, name: str, config: LoraConfig) -> None:
    """Add an adapter to the layers that the config names, on the devices of these layers."""
    config._register_custom_module({nn.Linear: StackedLinear})  # as PEFT's guide to custom models has it
    inject_adapter_in_model(config, transformer, adapter_name=name)


def select_together(transformer: nn.Module) -> Selection:
    """The selection that all adapted layers share from now on; it is empty."""
    selection = Selection()
    for module in transformer.modules():
        if isinstance(module, StackedLinear):
            module.selection = selection
    return selection
