"""A family's transformer alone: read, or without weights where another process reads it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from rtdmd_lightning.models.broadcast import without_weights
from rtdmd_lightning.models.folder import fetch
from rtdmd_lightning.utils.errors import UserError

if TYPE_CHECKING:
    from rtdmd_lightning.models.pipeline import PipelineBackbone


def check_alike(backbone: "PipelineBackbone", pretrained: str) -> None:
    """Raises UserError for a folder whose transformer has another config than the backbone's; reads no weights."""
    backbone.source.check(pretrained, ["transformer"])
    wanted = backbone.read_config("transformer")
    found = backbone.source.config(backbone.transformer_class, pretrained, "transformer")
    for name, value in wanted.items():
        if not name.startswith("_") and found.get(name) != value:
            raise UserError(
                f"the transformer of {pretrained} is not one of {backbone.pretrained}: its {name} is {found.get(name)}, "
                f"not {value}"
            )


def read_transformer(backbone: "PipelineBackbone", pretrained: str) -> nn.Module:
    """Of a folder or hub id, of which nothing else is read; in the backbone's dtype. Raises UserError where there is none."""
    backbone.source.check(pretrained, ["transformer"])
    if not backbone.reads_weights:
        return awaited_transformer(backbone, pretrained, dict.fromkeys(("vae", *backbone.encoders)))
    return backbone.source.transformer(backbone.transformer_class, pretrained, backbone.dtype)


def awaited_transformer(backbone: "PipelineBackbone", pretrained: str, given: Mapping[str, Any]) -> nn.Module:
    """Where another process reads it. Files of the hub are fetched all the same, but for the given parts, and each is by one
    process of a machine at a time (the hub's cache has locks, which know no time-out): nobody waits for a download in a
    collective."""
    fetch(backbone.pipeline_class, pretrained, dict.fromkeys(backbone.unused_encoders()) | dict(given))
    return without_weights(backbone.outline(pretrained).to(backbone.dtype))
