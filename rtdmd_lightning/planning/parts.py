"""A pipeline's parts without their weights: transformers, autoencoders and text encoders made of configs alone.

Configs come from the pipeline's folder, or for a published model from the committed facts: its transformer's from
`models/facts`, its other parts' from `facts/companions.json`, which says for each where it was read and what of it is estimated.
"""

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from rtdmd_lightning.models.families import family_of
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.models.published import NAMES, published
from rtdmd_lightning.planning.fake_device import unfaked
from rtdmd_lightning.utils.errors import UserError

SD3_ENCODERS = {"text_encoder": "clip_l_projected", "text_encoder_2": "clip_bigg_projected", "text_encoder_3": "t5_xxl"}
COMPANIONS = {  # of each published model, by the pipeline's name for the part
    "sd3_medium": {"vae": "vae_sd3", **SD3_ENCODERS},
    "sd35_medium": {"vae": "vae_sd3", **SD3_ENCODERS},
    "flux1_dev": {"vae": "vae_flux1", "text_encoder": "clip_l", "text_encoder_2": "t5_xxl"},
    "flux2_klein_4b": {"vae": "vae_flux2", "text_encoder": "qwen3_4b"},
    "flux2_klein_9b": {"vae": "vae_flux2", "text_encoder": "qwen3_8b"},
}


Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class PartConfig:
    """A class of diffusers or transformers, by name, and what it is built from."""

    library: str
    class_name: str
    config: dict[str, Any]

    @unfaked
    def build(self) -> nn.Module:
        """The part on the meta device: names, shapes, buffers, no numbers. Parameters are float32."""
        part_class = getattr(importlib.import_module(self.library), self.class_name)
        with torch.device("meta"):
            if self.library == "diffusers":
                return part_class.from_config(self.config)
            return part_class(part_class.config_class(**self.config))


@dataclass(frozen=True)
class PipelineConfigs:
    """The configs of a pipeline's networks, and of its scheduler, by the pipeline's names for them."""

    parts: dict[str, PartConfig]
    scheduler: dict[str, Any]


def pipeline_configs(backbone: PipelineBackbone) -> PipelineConfigs:
    """Those of a backbone's pipeline. Raises UserError for a hub id of which there are no facts."""
    if Path(backbone.pretrained).is_dir() or backbone.pretrained.startswith(("/", ".")):
        return _from_folder(backbone)
    models = {published(name).pretrained: name for name in NAMES}
    if backbone.pretrained not in models:
        raise UserError(
            f"nothing is known of the shapes of {backbone.pretrained!r}: give a diffusers folder, or one of {', '.join(models)}"
        )
    name = models[backbone.pretrained]
    parts = {part: companion(key) for part, key in COMPANIONS[name].items()}
    transformer = PartConfig("diffusers", backbone.transformer_class.__name__, published(name).transformer)
    # Levels do not change a byte, but a family checks that its scheduler is of its kind.
    scheduler = {"shift": 3.0, "use_dynamic_shifting": backbone.dynamic_shifting}
    return PipelineConfigs({"transformer": transformer, **parts}, scheduler)


@cache
def _companions() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "facts/companions.json").read_text())


def companion(key: str) -> PartConfig:
    """A committed fact of `facts/companions.json`."""
    fact = _companions()[key]
    return PartConfig(fact["library"], fact["class"], fact["config"])


def _from_folder(backbone: PipelineBackbone) -> PipelineConfigs:
    family_of(backbone.pretrained)  # raises UserError for a folder that is no pipeline of a family here
    folder = Path(backbone.pretrained)
    index = json.loads((folder / "model_index.json").read_text())
    parts = {}
    for name, (library, class_name) in ((name, entry) for name, entry in index.items() if isinstance(entry, list)):
        if library and (folder / name / "config.json").is_file():
            config = json.loads((folder / name / "config.json").read_text())
            parts[name] = PartConfig(library, class_name, config)
    return PipelineConfigs(parts, FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler"))


def materialise(part: Part, dtype: torch.dtype) -> Part:
    """A frozen part from the meta device with tensors of the fake mode that is active, in the dtype of its weights."""
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(
                module, name, torch.empty(buffer.shape, dtype=dtype if buffer.is_floating_point() else buffer.dtype)
            )
    return part.requires_grad_(False).eval()


def parameter_bytes(parameters: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    """Of weights as they are, or in another dtype."""
    return sum(p.numel() * (p.element_size() if dtype is None else dtype.itemsize) for p in parameters)
