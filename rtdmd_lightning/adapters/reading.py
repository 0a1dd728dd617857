"""Reading adapters. What a file is follows from its name; anything in it that is not understood is an error.

| format | where the rank is from | where alpha is from |
|---|---|---|
| published `.pt` (METHOD section 5) | shapes | the file where this project wrote it, else the method's 2 x rank |
| checkpoint `.ckpt` of a run | shapes | as above |
| PEFT folder | shapes | `adapter_config.json` |
| diffusers `.safetensors` | shapes | its metadata, else its `.alpha` entries, else alpha = rank, as diffusers has it |
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rtdmd_lightning.adapters.adapter import METHOD_SCALE, SCALE_KEY, Adapter, LayerUpdate
from rtdmd_lightning.checkpointing import read_checkpoint
from rtdmd_lightning.errors import UserError
from rtdmd_lightning.models.lora import read_adapter

PUBLISHED, DIFFUSERS, PEFT_WEIGHTS, PEFT_CONFIG = (
    "generator_ema.pt",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
EMA = "generator_ema"
KEY = re.compile(r"(?P<path>.+)\.lora_(?P<half>[AB])(\.(?P<name>[^.]+))?\.weight")


def read(path: str | Path, *, role: str = EMA, alpha: float | None = None) -> Adapter:
    """An adapter from a file or folder in any of the formats.

    Args:
        path: a `.pt`, `.ckpt` or `.safetensors` file, or a folder that holds one of the formats.
        role: which adapter of a checkpoint.
        alpha: what the file's alpha should be: checked against files that hold it, believed for those that do not.

    Raises UserError where the file cannot be read, holds code, holds unknown keys, or contradicts `alpha`.
    """
    found = _locate(Path(path))
    if found.name == PEFT_CONFIG:
        adapter, known = _read_peft(found.parent), True
    elif found.suffix == ".safetensors":
        adapter, known = _read_diffusers(found), True
    elif found.suffix == ".ckpt":
        adapter, known = _read_checkpoint(found, role)
    else:
        adapter, known = _read_published(found)
    return adapter if alpha is None else _with_alpha(adapter, alpha, known)


def from_state_dict(state: Mapping[str, Tensor], scale: float, source: str) -> Adapter:
    """METHOD section 5's format as an adapter. Raises UserError that names keys which are not of it."""
    return _adapter(_pairs(state, source, prefix="", name="default"), source, lambda *_: scale)


def _locate(path: Path) -> Path:
    """The file that decides. In a folder that stage 2 wrote, the diffusers file holds the cold start as well as the adapter: the
    published one comes first, or a stack of both stages' folders would apply the cold start twice."""
    if path.is_dir():
        for name in (PEFT_CONFIG, PUBLISHED, DIFFUSERS):
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"the adapter folder {path} holds none of {PEFT_CONFIG}, {DIFFUSERS} and {PUBLISHED} (a distributed "
            "checkpoint cannot be read: train with save_distributed_checkpoint=false)"
        )
    if not path.is_file():
        raise UserError(f"the adapter {path} does not exist")
    if path.name in (PEFT_WEIGHTS, PEFT_CONFIG):
        return path.parent / PEFT_CONFIG
    if path.suffix not in (".pt", ".ckpt", ".safetensors"):
        raise UserError(f"the adapter file {path} must end in .pt, .ckpt or .safetensors")
    return path


def _read_published(path: Path) -> tuple[Adapter, bool]:
    state = read_adapter(str(path))
    scale = vars(state).get(SCALE_KEY) if isinstance(state, OrderedDict) else None
    return from_state_dict(state, scale or METHOD_SCALE, str(path)), scale is not None


def _read_checkpoint(path: Path, role: str) -> tuple[Adapter, bool]:
    checkpoint = read_checkpoint(path)
    # Keys begin with the module's attribute: `transformer`, or the generator's own base where it has one.
    state = {key.partition(".")[2]: value for key, value in checkpoint["state_dict"].items()}
    names = {match["name"] for key in state if (match := KEY.fullmatch(key))}
    if role not in names:
        raise UserError(f"{path} has no adapter {role!r}; it has {', '.join(sorted(map(str, names))) or 'none'}")
    of_role = {key: value for key, value in state.items() if f".{role}." in key}
    scale = checkpoint.get(SCALE_KEY)
    pairs = _pairs(of_role, str(path), prefix="", name=role)
    return _adapter(pairs, f"{path} ({role})", lambda *_: scale or METHOD_SCALE), scale is not None


def _read_peft(folder: Path) -> Adapter:
    if not (folder / PEFT_WEIGHTS).is_file():
        raise UserError(f"the PEFT folder {folder} has no {PEFT_WEIGHTS}")
    try:
        config = LoraConfig.from_pretrained(folder)
    except (TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / PEFT_CONFIG} does not describe a LoRA adapter: {error}") from error
    return _by_config(_load(folder / PEFT_WEIGHTS), config, str(folder), prefix="base_model.model.")


def _read_diffusers(path: Path) -> Adapter:
    state = _load(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    config = {
        key.removeprefix("transformer."): value for key, value in metadata.items() if key.startswith("transformer.")
    }
    if config:
        return _by_config(state, LoraConfig(**config), str(path), prefix="transformer.")
    alphas = {key: float(value) for key, value in state.items() if key.endswith(".alpha")}
    rest = {key: value for key, value in state.items() if key not in alphas}
    pairs = _pairs(rest, str(path), prefix="transformer.", name=None)
    if lost := [key for key in alphas if key.removeprefix("transformer.").removesuffix(".alpha") not in pairs]:
        raise UserError(f"{path}: there is no layer for {', '.join(lost)}")
    return _adapter(pairs, str(path), lambda layer, rank: alphas.get(f"transformer.{layer}.alpha", rank) / rank)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def _by_config(state: Mapping[str, Tensor], config: LoraConfig, source: str, prefix: str) -> Adapter:
    """An adapter that PEFT's own configuration describes; its ranks are checked against the shapes."""
    if config.use_dora or config.bias != "none":
        raise UserError(f"{source} uses DoRA or biases; only plain LoRA can be read")
    pairs = _pairs(state, source, prefix=prefix, name=None)
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}

    def scale(layer: str, rank: int) -> float:
        told = ranks.get(get_pattern_key(ranks, layer), config.r)
        if told != rank:
            raise UserError(f"{source}: {layer} has rank {rank}, its configuration says {told}")
        alpha = alphas.get(get_pattern_key(alphas, layer), config.lora_alpha)
        return alpha / (rank**0.5 if config.use_rslora else rank)

    return _adapter(pairs, source, scale)


def _pairs(state: Mapping[str, Tensor], source: str, *, prefix: str, name: str | None) -> dict[str, dict[str, Tensor]]:
    """The A and B of every layer. Raises UserError that names the keys which are neither."""
    pairs: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, value in state.items():
        match = KEY.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if match is None or match["name"] != name:
            strange.append(key)
        else:
            pairs.setdefault(match["path"], {})[match["half"]] = value
    if strange or not pairs:
        example = f"{prefix}LAYER.lora_A.{f'{name}.' if name else ''}weight"
        raise UserError(f"{source}: keys look like {example!r} here, not like {', '.join(strange) or 'nothing at all'}")
    if halves := [path for path, pair in pairs.items() if len(pair) == 1]:
        raise UserError(f"{source}: lora_A or lora_B is missing for {', '.join(halves)}")
    return pairs


def _adapter(pairs: Mapping[str, Mapping[str, Tensor]], source: str, scale: Callable[[str, int], float]) -> Adapter:
    layers = {}
    for path, pair in pairs.items():
        if pair["A"].ndim != 2 or pair["B"].ndim != 2 or len(pair["A"]) != pair["B"].shape[1]:
            raise UserError(f"{source}: the shapes of lora_A and lora_B of {path} do not go together")
        layers[path] = LayerUpdate(pair["A"], pair["B"], scale(path, len(pair["A"])))
    return Adapter(layers, source)


def _with_alpha(adapter: Adapter, alpha: float, known: bool) -> Adapter:
    if known and (wrong := next((u for u in adapter.layers.values() if abs(u.alpha - alpha) > 1e-6), None)):
        raise UserError(f"{adapter.source} was made with alpha {wrong.alpha:g}, not {alpha:g}")
    layers = {path: LayerUpdate(u.down, u.up, alpha / u.rank) for path, u in adapter.layers.items()}
    return Adapter(layers, adapter.source)
