"""Writing adapters, in every format that `reading` reads but one.

A training checkpoint is not written: it is optimizers, both roles and a position in the data, which no adapter can stand for.
To go on from an adapter, hand it to `model.initial_adapter` (or, in stage 2, to the stage that lies under it).

Every file appears under another name first, so that a reader never meets half of one.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.roles.adapter import FOLDED_SCALE, SCALE_KEY, Adapter, LayerUpdate
from rtdmd_lightning.roles.apply import check_fit
from rtdmd_lightning.roles.reading import DIFFUSERS, PEFT_CONFIG, PEFT_WEIGHTS, PUBLISHED
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import appearing_in, write_text


def write_published(adapter: Adapter, folder: Path, name: str = PUBLISHED) -> Path:
    """METHOD section 5's plain state dict. Its scale travels as an attribute of the OrderedDict, invisible to other readers."""
    adapter = adapter.with_one_scale()
    state = OrderedDict(adapter.state_dict())
    setattr(state, SCALE_KEY, adapter.scale)
    # An open file: of a path that it opens itself, torch would not say that the disk is full.
    with appearing_in(folder) as partial, (partial / name).open("wb") as file:
        torch.save(state, file)
    return folder / name


def write_peft(adapter: Adapter, folder: Path, base: str) -> Path:
    """A folder for `PeftModel.from_pretrained(transformer, folder)`; `base` is recorded in it."""
    config = adapter.peft_config()
    config.base_model_name_or_path = base
    config.inference_mode = True
    with appearing_in(folder) as partial:
        save_file(adapter.state_dict("base_model.model.{path}.lora_{half}.weight"), partial / PEFT_WEIGHTS)
        config.save_pretrained(partial)
    return folder / PEFT_CONFIG


def write_diffusers(adapter: Adapter, folder: Path, pipeline_class: Any) -> Path:
    """A file for `pipe.load_lora_weights(folder)`, and for readers that take B·A as it stands, such as ComfyUI.

    The scale is folded into B, so alpha is the rank; diffusers' metadata tells every layer's.
    """
    adapter = adapter.with_scale(FOLDED_SCALE)
    config = adapter.peft_config()
    names = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
    with appearing_in(folder) as partial:
        pipeline_class.save_lora_weights(
            partial,
            transformer_lora_layers=adapter.state_dict("{path}.lora_{half}.weight"),
            transformer_lora_adapter_metadata={name: getattr(config, name) for name in names}
            | {"target_modules": sorted(adapter.layers)},
            weight_name=DIFFUSERS,
        )
    return folder / DIFFUSERS


def write_merged(transformer: ModelMixin, folder: Path) -> Path:
    """A transformer that adapters were merged into, for `from_pretrained(folder)` of its class."""
    with appearing_in(folder) as partial:
        transformer.save_pretrained(partial)
    return folder / "config.json"


def write_whole(state: Mapping[str, Tensor], config: Any, folder: Path, backbone: Backbone) -> Path:
    """A transformer as the one part of its family's pipeline: `folder/transformer`, and an index that lists nothing else."""
    with torch.device("meta"):
        transformer = backbone.transformer_class.from_config(config)
    transformer.load_state_dict(state, assign=True)
    write_merged(transformer, folder / "transformer")
    index = {
        "_class_name": backbone.pipeline_class.__name__,
        "transformer": ["diffusers", backbone.transformer_class.__name__],
    }
    write_text(json.dumps(index, indent=2) + "\n", folder / "model_index.json")
    return folder / "model_index.json"


def check_diffusers_reads_all(adapter: Adapter, folder: Path, skeleton: nn.Module) -> None:
    """Let diffusers load the written file into a transformer without weights, and compare layer by layer.

    diffusers only warns of keys that it ignores, and of metadata that it misreads not even that. Raises UserError that names
    the layers which would not do what the adapter does. `skeleton` is changed.
    """
    check_fit(adapter, skeleton)
    adapter = adapter.with_scale(FOLDED_SCALE)
    for path in adapter.layers:
        # PEFT moves adapters to the device of their layer, and on the meta device there would be nothing to compare. A stride
        # of zero gives the layer its shape without its memory.
        shape = skeleton.get_parameter(f"{path}.weight").shape
        skeleton.get_submodule(path).weight = nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)
    skeleton.load_lora_adapter(  # type: ignore[operator]
        folder, weight_name=DIFFUSERS, prefix="transformer", adapter_name="check", low_cpu_mem_usage=True
    )
    loaded = {path: layer for path, layer in skeleton.named_modules() if isinstance(layer, LoraLayer)}
    wrong = [
        path for path, update in adapter.layers.items() if path not in loaded or not _is_update(loaded[path], update)
    ]
    if wrong or loaded.keys() - adapter.layers.keys():
        raise UserError(
            f"diffusers would not apply {folder / DIFFUSERS} as it was meant, in {len(wrong)} of {len(adapter.layers)} "
            f"layers: {', '.join(wrong) or 'it adapts others besides'}"
        )


def _is_update(layer: LoraLayer, update: LayerUpdate) -> bool:
    halves = ((layer.lora_A["check"].weight, update.down), (layer.lora_B["check"].weight, update.up))
    return layer.scaling["check"] == update.scale and all(
        not found.is_meta and torch.equal(found, wanted)
        for found, wanted in halves  # meta: no key of the file filled it
    )
