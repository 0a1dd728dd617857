"""The diffusers file in ComfyUI, which knows no metadata and keeps q, k and v in one matrix: it adds what diffusers adds."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from rtdmd_lightning.models import Flux2Backbone, FluxBackbone, SD3Backbone
from rtdmd_lightning.roles import Adapter, LayerUpdate, writing
from rtdmd_lightning.roles.reading import DIFFUSERS
from tests.support import comfyui, original_layouts
from tests.support.original_layouts import COLUMNS, FLUX1_WIDTH, FLUX2_WIDTH

SD3_DEPTH = 2
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")


@dataclass(frozen=True)
class Family:
    backbone: type
    weights: dict[str, Tensor]
    place: partial
    to_diffusers: str  # diffusers' own converter, the judge of the layout
    layers: int  # of one adapter that has all targets and the feed-forward layers

    def in_diffusers(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return getattr(single_file_utils, self.to_diffusers)(dict(weights))


FAMILIES = {
    "sd3": lambda: Family(
        SD3Backbone,
        original_layouts.sd3_weights(SD3_DEPTH),
        partial(comfyui.place_in_sd3, depth=SD3_DEPTH),
        "convert_sd3_transformer_checkpoint_to_diffusers",
        (8 + 4) + (7 + 2),
    ),
    "flux1": lambda: Family(
        FluxBackbone,
        original_layouts.flux1_weights(),
        partial(comfyui.place_in_flux, width=FLUX1_WIDTH),
        "convert_flux_transformer_checkpoint_to_diffusers",
        (8 + 4) + (3 + 2),
    ),
    "flux2": lambda: Family(
        Flux2Backbone,
        original_layouts.flux2_weights(),
        partial(comfyui.place_in_flux, width=FLUX2_WIDTH),
        "convert_flux2_transformer_checkpoint_to_diffusers",
        8 + 2,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    torch.manual_seed(0)
    return FAMILIES[request.param]()


@pytest.fixture
def adapter(family) -> Adapter:
    """Of all target layers and the feed-forward ones, of two ranks, at METHOD's scale of 2."""
    targets = (*family.backbone.lora_targets, *FEED_FORWARD)
    layers = {}
    for key, weight in family.in_diffusers(family.weights).items():
        path = key.removesuffix(".weight")
        if key.endswith(".weight") and "." in path and any(f".{path}".endswith(f".{target}") for target in targets):
            rank = 3 if ".to_k" in path else 2
            layers[path] = LayerUpdate(torch.randn(rank, COLUMNS), torch.randn(len(weight), rank), 2.0)
    assert len(layers) == family.layers
    return Adapter(layers, "a test")


def test_every_weight_is_the_one_that_diffusers_merges(family, adapter, tmp_path):
    writing.write_diffusers(adapter, tmp_path, family.backbone.pipeline_class)
    patched, unread = comfyui.apply(family.weights, tmp_path / DIFFUSERS, family.place)
    assert unread == set()
    before, after = family.in_diffusers(family.weights), family.in_diffusers(patched)
    for key, weight in before.items():
        update = adapter.layers.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        assert torch.equal(after[key], weight if update is None else weight + update.delta()), key
