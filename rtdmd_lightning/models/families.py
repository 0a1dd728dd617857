"""Which backbone a diffusers folder or hub id is for, and what can be known of it without its weights."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from jsonargparse import ArgumentParser
from torch import nn

from rtdmd_lightning.models.flux import FluxBackbone
from rtdmd_lightning.models.flux2 import Flux2Backbone
from rtdmd_lightning.models.folder import check_folder, read_config
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.models.sd3 import SD3Backbone
from rtdmd_lightning.models.source import Pretrained
from rtdmd_lightning.utils.errors import UserError

FAMILIES: tuple[type[PipelineBackbone], ...] = (SD3Backbone, FluxBackbone, Flux2Backbone)
FLUX_LATENT_SIDE = 128  # the default of the pipelines whose transformers have no `sample_size`


def family_of(pretrained: str) -> type[PipelineBackbone]:
    """The backbone class by the pipeline that a model index names. Raises UserError for a pipeline of no family here."""
    check_folder(pretrained, ["transformer"])
    name = read_config(DiffusionPipeline, pretrained).get("_class_name", "pipeline without a name")
    for family in FAMILIES:
        if family.pipeline_class.__name__ == name:
            return family
    known = ", ".join(family.pipeline_class.__name__ for family in FAMILIES)
    raise UserError(f"the base model {pretrained!r} is a {name}; known are {known}")


def open_backbone(
    pretrained: str, resolution: int | None = None, options: dict[str, Any] | None = None
) -> PipelineBackbone:
    """An unloaded backbone of the right family.

    `options` are further arguments of its class; without a resolution it gets the one that its pipeline draws by default.
    Raises UserError for options that the class does not take.
    """
    family = family_of(pretrained)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(family, "backbone")
    given = {"pretrained": pretrained, "resolution": resolution or _default_resolution(family, pretrained)}
    return parser.instantiate_classes(parser.parse_object({"backbone": given | (options or {})})).backbone


def skeleton(pretrained: str) -> nn.Module:
    """The base's transformer without weights: every layer has its name and its shape, on the meta device."""
    transformer_class = family_of(pretrained).transformer_class
    with torch.device("meta"):
        return transformer_class.from_config(read_config(transformer_class, pretrained, "transformer"))


def load_transformer(pretrained: str, dtype: torch.dtype) -> nn.Module:
    """The base's transformer alone."""
    return Pretrained().transformer(family_of(pretrained).transformer_class, pretrained, dtype)


def _default_resolution(family: type[PipelineBackbone], pretrained: str) -> int:
    """As the pipelines have it: the latents' default side times the autoencoder's factor."""
    transformer = read_config(family.transformer_class, pretrained, "transformer")
    levels = read_config(AutoencoderKL, pretrained, "vae")["block_out_channels"]
    return transformer.get("sample_size", FLUX_LATENT_SIDE) * 2 ** (len(levels) - 1)
