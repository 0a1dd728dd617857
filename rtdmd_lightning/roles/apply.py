"""Adapters on a transformer: kept beside it as frozen PEFT adapters, or merged into its weights."""

import warnings

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from rtdmd_lightning.roles import stacked
from rtdmd_lightning.roles.adapter import FOLDED_SCALE, Adapter
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.utils.errors import UserError


def linear_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """The shapes `(out, in)` of all linear layers by path, of adapted ones the base layer's."""
    return {path: tuple(module.weight.shape) for path, module in transformer.named_modules() if _is_linear(module)}


def check_fit(adapter: Adapter, transformer: nn.Module) -> None:
    """Raise UserError unless every layer of the adapter is a linear layer of the transformer, of the same width.

    The transformer may live on the meta device. That the adapter leaves layers of it alone is no error.
    """
    shapes = linear_shapes(transformer)
    if unknown := [path for path in adapter.layers if path not in shapes]:
        wanted = next(iter(shapes))
        if len(unknown) == len(adapter.layers):
            raise UserError(
                f"{adapter.source}: no key matches {type(transformer).__name__} (it has {unknown[0]!r}, the model e.g. "
                f"{wanted!r})"
            )
        raise UserError(
            f"{adapter.source}: {len(unknown)} of {len(adapter.layers)} layers are not in "
            f"{type(transformer).__name__}: {', '.join(unknown)}"
        )
    for path, update in adapter.layers.items():
        if update.shape != shapes[path]:
            raise UserError(
                f"{adapter.source}: {path} is made for a layer of shape {update.shape}, this base has {shapes[path]}; "
                "is it the base that the adapter was trained on?"
            )


def at_settings(adapter: Adapter, settings: LoraSettings) -> Adapter:
    """The adapter as one of the settings' rank and scale, so that training can go on in it.

    Where alpha is the rank, B has the scale folded into it (a diffusers file) and gives it back. Raises UserError for layers of
    another rank or scale.
    """
    for path, update in adapter.layers.items():
        known = update.scale == FOLDED_SCALE or abs(update.scale - settings.scale) <= 1e-6
        if update.rank != settings.rank or not known:
            raise UserError(
                f"{adapter.source} has rank {update.rank} and alpha {update.alpha:g} (at {path}), but model.lora has rank "
                f"{settings.rank} and alpha {settings.alpha}: set model.lora.rank and model.lora.alpha to the file's"
            )
    return adapter.with_scale(settings.scale)


def inject(transformer: nn.Module, name: str, adapter: Adapter) -> None:
    """Add a frozen float32 adapter beside whatever is there, not active yet. Raises UserError where it does not fit."""
    check_fit(adapter, transformer)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Already found a `peft_config` attribute"
        )  # a stack is what is wanted
        stacked.inject(transformer, name, adapter.peft_config())
    for path, update in adapter.layers.items():
        layer = transformer.get_submodule(path)
        assert isinstance(layer, LoraLayer)
        device = layer.weight.device
        layer.lora_A[name].weight = nn.Parameter(update.down.to(device, torch.float32), requires_grad=False)
        layer.lora_B[name].weight = nn.Parameter(update.up.to(device, torch.float32), requires_grad=False)
        layer.requires_grad_(False)


def activate(transformer: nn.Module, names: list[str]) -> None:
    """Make these adapters, and no others, add their updates."""
    stacked.select_together(transformer).names = tuple(names)


@torch.no_grad()
def merge(transformer: nn.Module, adapter: Adapter) -> None:
    """Add the updates to the weights, which are rounded to their dtype once. Raises UserError where it does not fit."""
    check_fit(adapter, transformer)
    for path, update in adapter.layers.items():
        weight = transformer.get_parameter(f"{path}.weight")
        weight.copy_(weight.float() + update.delta().to(weight.device))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, LoraLayer) and isinstance(module.weight, nn.Parameter))
