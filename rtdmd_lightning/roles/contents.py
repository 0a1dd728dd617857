"""What a foreign file holds, as plain matrices under text keys or as JSON; everything else is a UserError that names the file."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rtdmd_lightning.roles.adapter import Adapter
from rtdmd_lightning.roles.measures import not_finite
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.json_text import parse_json, read_json

OF_PLAIN_LORA = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias")
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def load_pt(path: Path) -> Mapping[str, Tensor]:
    """A plain state dict of a `.pt` file; nothing in it is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what the unpickler raises depends on the bytes
        raise UserError(f"{path} is not a plain state dict of tensors, and nothing else is loaded") from error
    require(isinstance(state, dict), f"{path} is not a plain state dict of tensors")
    return state


def check_matrices(state: Mapping[Any, Any], source: str) -> None:
    """Raises UserError that names the first key which is no text, or does not hold plain floating-point numbers."""
    for key, value in state.items():
        require(isinstance(key, str), f"{source} is not a plain state dict of tensors: it has the key {key!r}")
        require(isinstance(value, Tensor), f"{source} is not a plain state dict of tensors: {key} is none")
        plain = type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"
        require(plain and not value.is_nested, f"{source}: {key} is no plain tensor")
        require(
            value.dtype in WEIGHTS,
            f"{source}: {key} holds numbers of {value.dtype}; the weights of an adapter are float32, float16 or bfloat16",
        )


def check_finite(adapter: Adapter, key: str) -> None:
    """Raises UserError that names the first key with a NaN or an infinity; `key` is as `Adapter.state_dict` takes it."""
    if bad := not_finite(adapter.state_dict(key)):
        first, count = next(iter(bad.items()))
        raise UserError(
            f"{adapter.source}: {count:,} numbers of {first} are NaN or infinite"
            + (f", and {len(bad) - 1} more keys are like it" if len(bad) > 1 else "")
        )


def check_scale(scale: Any, source: str) -> float:
    """Returns it. Raises UserError for alpha / rank that is no number above 0."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    require(number and 0 < scale < math.inf, f"{source}: alpha / rank must be a number above 0, not {scale!r}")
    return float(scale)


def one_number(value: Tensor, source: str) -> float:
    """Of a tensor that holds one; raises UserError for any other."""
    require(value.numel() == 1 and not value.is_complex(), f"{source} must be one number, not {tuple(value.shape)}")
    return value.item()


def lora_config(path: Path) -> LoraConfig:
    """What an `adapter_config.json` says of plain LoRA. Raises UserError for another kind of adapter, such as IA3."""
    config = read_json(path)
    require(isinstance(config, dict), f"{path} must be an object")
    kind = config.get("peft_type")
    require(kind == "LORA", f"{path} describes an adapter of the kind {kind!r}; only plain LoRA (LORA) can be read")
    told = {name: config[name] for name in OF_PLAIN_LORA if config.get(name) is not None}
    return _plain_lora(told, str(path))


def metadata_config(metadata: Mapping[str, str], prefix: str, source: str) -> LoraConfig | None:
    """What diffusers wrote into a file about the transformer's adapter, under keys with `prefix`; None where it wrote nothing."""
    place = f"the metadata of {source}"
    told = parse_json(metadata.get("lora_adapter_metadata", "{}"), place)
    require(isinstance(told, dict), f"{place} must be an object")
    options = {key.removeprefix(prefix): value for key, value in told.items() if key.startswith(prefix)}
    return _plain_lora(options, place) if options else None


def _plain_lora(options: Mapping[str, Any], source: str) -> LoraConfig:
    """PEFT's own object of these options. Raises UserError for those of other adapters than plain LoRA, and for wrong types."""
    try:
        config = LoraConfig(**options)
        for pattern in (config.rank_pattern, config.alpha_pattern):
            for path, value in pattern.items():
                require(_is_number(value), f"{source}: {path} must have a number, not {value!r}")
                re.compile(path)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{source} does not describe a LoRA adapter: {error}") from error
    require(not config.use_dora and config.bias == "none", f"{source} uses DoRA or biases; only plain LoRA can be read")
    require(_is_number(config.r) and _is_number(config.lora_alpha), f"{source}: r and lora_alpha must be numbers")
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
