"""Reading adapters. What a file is follows from its name; anything in it that is not understood is an error.

| format | before a layer's path | where alpha is from |
|---|---|---|
| published `.pt` (METHOD section 5) | nothing, or DDP's `module.` | the file if this project wrote it, else 2 x rank |
| checkpoint `.ckpt` of a run | `roles.transformer.` or `roles.generator_base.` | as above |
| PEFT folder | `base_model.model.`, `module.` or nothing | `adapter_config.json` |
| diffusers `.safetensors` | `transformer.` | its metadata, else its `.alpha` entries, else alpha = rank |

Ranks are the shapes'. A folder `checkpoint-N` of the authors' scripts holds a PEFT folder as `transformer`, and is read as that.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from rtdmd_lightning.roles import contents
from rtdmd_lightning.roles.adapter import METHOD_SCALE, SCALE_KEY, Adapter, LayerUpdate
from rtdmd_lightning.roles.keys import KEY, KeyForm, Pairs, pairs_of
from rtdmd_lightning.utils.checkpointing import read_checkpoint
from rtdmd_lightning.utils.errors import UserError, require

PUBLISHED, DIFFUSERS, PEFT_WEIGHTS, PEFT_CONFIG = (
    "generator_ema.pt",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
AUTHORS_FOLDER = "transformer"  # in the authors' checkpoint-N, a PEFT folder: of the EMA where they keep one
EMA = "generator_ema"

METHOD_FORM, DIFFUSERS_FORM = KeyForm("", "default"), KeyForm("transformer.", None)
PUBLISHED_FORMS = (METHOD_FORM, KeyForm("module.", "default"))  # DDP's state dict has the prefix
PEFT_FORMS = tuple(
    KeyForm(prefix, name) for prefix in ("base_model.model.", "", "module.") for name in (None, "default")
)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter, and how its file holds it.

    Args:
        adapter: with the scale that the file says or its format means.
        format: in words.
        form: how its keys are written.
        alpha_from: what in the file says alpha; None where nothing does.
        alpha_assumed: what the format takes alpha to be where nothing says it.
    """

    adapter: Adapter
    format: str
    form: KeyForm
    alpha_from: str | None
    alpha_assumed: str = "the method's 2 x rank"


def read(path: str | Path, *, role: str = EMA, alpha: float | None = None) -> Adapter:
    """An adapter from a file or folder in any of the formats.

    Args:
        path: a `.pt`, `.ckpt` or `.safetensors` file, or a folder that holds one of the formats.
        role: which adapter of a checkpoint.
        alpha: what the file's alpha should be: checked against files that hold it, believed for those that do not.

    Raises UserError where the file cannot be read, holds code, unknown keys, or numbers that no adapter has (NaN, infinite,
    complex, whole), or contradicts `alpha`.
    """
    require(alpha is None or 0 < alpha < math.inf, f"alpha must be a number above 0, not {alpha}")
    file = _open(_locate(Path(path)), role)
    contents.check_finite(file.adapter, file.form.key("{path}", "{half}"))
    return file.adapter if alpha is None else _with_alpha(file, alpha)


def read_all(path: str | Path) -> list[AdapterFile]:
    """Every adapter that a file or folder holds: of a checkpoint one a role, else one.

    Raises UserError as `read` does, but for numbers that are NaN or infinite: they are let through.
    """
    found = _locate(Path(path))
    roles = _roles(_state_of(found, read_checkpoint(found))) if found.suffix == ".ckpt" else []
    return [_open(found, role) for role in roles or [EMA]]


def from_state_dict(state: Mapping[str, Tensor], scale: float, source: str) -> Adapter:
    """METHOD section 5's format as an adapter. Raises UserError that names keys which are not of it."""
    return _adapter(pairs_of(state, [METHOD_FORM], source)[1], source, lambda *_: scale)


def _locate(path: Path) -> Path:
    """The file that decides. In a folder that stage 2 wrote, the diffusers file holds the cold start as well as the adapter: the
    published one comes first, or a stack of both stages' folders would apply the cold start twice. In the authors' checkpoint-N
    the PEFT folder is the published file's twin and knows its alpha."""
    if path.is_dir():
        for name in (PEFT_CONFIG, f"{AUTHORS_FOLDER}/{PEFT_CONFIG}", PUBLISHED, DIFFUSERS):
            if (path / name).is_file():
                return path / name
        require(
            not (path / "transformer/config.json").is_file(),
            f"{path} holds a whole transformer, not an adapter: draw with it as the backbone's transformer_from, and go on from "
            "it in stage 2 with --model.trainable=full",
        )
        raise UserError(
            f"the adapter folder {path} holds none of {PEFT_CONFIG}, {AUTHORS_FOLDER}/{PEFT_CONFIG}, {DIFFUSERS} and "
            f"{PUBLISHED} (a distributed checkpoint cannot be read: train with save_distributed_checkpoint=false)"
        )
    if not path.is_file():
        raise UserError(f"the adapter {path} does not exist")
    if path.name in (PEFT_WEIGHTS, PEFT_CONFIG):
        return path.parent / PEFT_CONFIG
    if path.suffix not in (".pt", ".ckpt", ".safetensors"):
        raise UserError(f"the adapter file {path} must end in .pt, .ckpt or .safetensors")
    return path


def _open(found: Path, role: str) -> AdapterFile:
    if found.name == PEFT_CONFIG:
        return _read_peft(found.parent)
    if found.suffix == ".safetensors":
        return _read_diffusers(found)
    return _read_checkpoint(found, role) if found.suffix == ".ckpt" else _read_published(found)


def _read_published(path: Path) -> AdapterFile:
    state = contents.load_pt(path)
    contents.check_matrices(state, str(path))
    scale = vars(state).get(SCALE_KEY) if isinstance(state, OrderedDict) else None
    form, pairs = pairs_of(state, PUBLISHED_FORMS, str(path))
    adapter = _adapter(pairs, str(path), _said_or_the_methods(scale))
    return AdapterFile(adapter, "published .pt (METHOD section 5)", form, None if scale is None else "the file")


def _read_checkpoint(path: Path, role: str) -> AdapterFile:
    checkpoint = read_checkpoint(path)
    whole = _state_of(path, checkpoint)
    if role not in (roles := _roles(whole)):
        raise UserError(f"{path} has no adapter {role!r}; it has {', '.join(roles) or 'none'}")
    # Before the layer stand the module's `roles` and which of their bases it is.
    state = {key.split(".", 2)[-1]: value for key, value in whole.items() if f".{role}." in key}
    scale, source = checkpoint.get(SCALE_KEY), f"{path} ({role})"
    contents.check_matrices(state, source)
    form, pairs = pairs_of(state, [KeyForm("", role)], source)
    adapter = _adapter(pairs, source, _said_or_the_methods(scale))
    return AdapterFile(adapter, "checkpoint of a run", form, None if scale is None else "the file")


def _said_or_the_methods(scale: Any) -> Callable[[str, int], Any]:
    return lambda *_: METHOD_SCALE if scale is None else scale


def _state_of(path: Path, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    state = checkpoint["state_dict"]
    require(isinstance(state, dict) and all(isinstance(key, str) for key in state), f"the state_dict of {path} is none")
    return state


def _roles(state: Mapping[str, Any]) -> list[str]:
    """The names of a checkpoint's adapters."""
    return sorted({match["name"] for key in state if (match := KEY.fullmatch(key)) and match["name"]})


def _read_peft(folder: Path) -> AdapterFile:
    if not (folder / PEFT_WEIGHTS).is_file():
        raise UserError(f"the PEFT folder {folder} has no {PEFT_WEIGHTS}")
    config = contents.lora_config(folder / PEFT_CONFIG)
    state, _ = contents.load_safetensors(folder / PEFT_WEIGHTS)
    contents.check_matrices(state, str(folder / PEFT_WEIGHTS))
    form, pairs = pairs_of(state, PEFT_FORMS, str(folder))
    return AdapterFile(_by_config(pairs, config, str(folder)), "PEFT folder", form, PEFT_CONFIG)


def _read_diffusers(path: Path) -> AdapterFile:
    state, metadata = contents.load_safetensors(path)
    prefix, source = DIFFUSERS_FORM.prefix, str(path)
    config = contents.metadata_config(metadata, prefix, source)
    alphas = {} if config else {key: value for key, value in state.items() if key.endswith(".alpha")}
    rest = {key: value for key, value in state.items() if key not in alphas}
    contents.check_matrices(rest, source)
    form, pairs = pairs_of(rest, [DIFFUSERS_FORM], source)
    if config:
        return AdapterFile(_by_config(pairs, config, source), "diffusers LoRA file", form, "the file's metadata")
    if lost := [key for key in alphas if key.removeprefix(prefix).removesuffix(".alpha") not in pairs]:
        raise UserError(f"{path}: there is no layer for {', '.join(lost)}")
    known = {key: contents.one_number(value, f"{path}: {key}") for key, value in alphas.items()}
    adapter = _adapter(pairs, source, lambda layer, rank: known.get(f"{prefix}{layer}.alpha", rank) / rank)
    alpha_from = "the file's .alpha entries" if alphas else None
    return AdapterFile(adapter, "diffusers LoRA file", form, alpha_from, "the rank, as diffusers has it")


def _by_config(pairs: Pairs, config: LoraConfig, source: str) -> Adapter:
    """An adapter that PEFT's own configuration describes; its ranks are checked against the shapes."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}

    def scale(layer: str, rank: int) -> float:
        told = ranks.get(get_pattern_key(ranks, layer), config.r)
        if told != rank:
            raise UserError(f"{source}: {layer} has rank {rank}, its configuration says {told}")
        alpha = alphas.get(get_pattern_key(alphas, layer), config.lora_alpha)
        return alpha / (rank**0.5 if config.use_rslora else rank)

    return _adapter(pairs, source, scale)


def _adapter(pairs: Pairs, source: str, scale: Callable[[str, int], Any]) -> Adapter:
    layers = {}
    for path, pair in pairs.items():
        down, up = pair["A"], pair["B"]
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or 0 in (*down.shape, *up.shape):
            raise UserError(f"{source}: the shapes of lora_A and lora_B of {path} do not go together")
        layers[path] = LayerUpdate(down, up, contents.check_scale(scale(path, len(down)), f"{source}, {path}"))
    return Adapter(layers, source)


def _with_alpha(file: AdapterFile, alpha: float) -> Adapter:
    adapter = file.adapter
    wrong = next((update for update in adapter.layers.values() if abs(update.alpha - alpha) > 1e-6), None)
    if file.alpha_from is not None and wrong is not None:
        raise UserError(f"{adapter.source} was made with alpha {wrong.alpha:g}, not {alpha:g}")
    return replace(adapter, layers={path: replace(u, scale=alpha / u.rank) for path, u in adapter.layers.items()})
