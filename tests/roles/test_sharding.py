"""FSDP2's options: what is gathered ahead, what stays gathered, and where the weights come from."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rtdmd_lightning.models import Flux2Backbone, FluxBackbone
from rtdmd_lightning.roles.sharding import Sharding, shard
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import OPTIONS, save_tiny_flux, save_tiny_flux2


class Block(nn.Linear):
    """A transformer's block, as far as sharding knows."""


def sharded(bring=lambda module: None, **options) -> nn.Sequential:
    model = nn.Sequential(*(Block(4, 4) for _ in range(4)), nn.Linear(4, 4))
    shard(model, Sharding(init_device_mesh("cpu", (1,)), **options), (Block,), bring)
    return model


@pytest.mark.parametrize(
    ("prefetch", "forward", "backward"),
    [
        (0, {}, {}),
        (1, {0: [1], 1: [2], 2: [3], 3: []}, {0: [], 1: [0], 2: [1], 3: [2]}),
        (3, {0: [1, 2, 3], 1: [2, 3], 2: [3], 3: []}, {0: [], 1: [0], 2: [1, 0], 3: [2, 1, 0]}),
    ],
)
def test_the_blocks_that_are_gathered_ahead(prefetch, forward, backward, process_group, monkeypatch):
    asked = {"forward": {}, "backward": {}}
    for way in asked:
        name = f"set_modules_to_{way}_prefetch"
        monkeypatch.setattr(FSDPModule, name, lambda self, modules, way=way: asked[way].update({self: modules}))
    blocks = list(sharded(prefetch=prefetch))[:-1]
    numbers = {
        way: {blocks.index(block): [blocks.index(other) for other in others] for block, others in of_way.items()}
        for way, of_way in asked.items()
    }
    assert numbers == {"forward": forward, "backward": backward}


@pytest.mark.parametrize("reshard", [True, False])
def test_a_block_stays_gathered_after_its_forward_pass_unless_it_is_to_be_sharded_again(reshard, process_group):
    model = sharded(reshard_after_forward=reshard)
    assert all(isinstance(block.weight, DTensor) for block in model)
    output = model(torch.randn(2, 4))
    assert [isinstance(block.weight, DTensor) for block in model[:-1]] == [reshard] * 4
    output.sum().backward()
    assert all(isinstance(block.weight, DTensor) for block in model)


@pytest.mark.parametrize(("name", "kinds"), [("flux", 2), ("flux2", 2), ("sd3", 1)])
def test_every_block_of_every_class_is_gathered_alone(name, kinds, process_group, tiny_folder, tmp_path):
    """One that is not would stay gathered with the rest of the transformer: memory for all of its kind."""
    save = {
        "flux": partial(save_tiny_flux, guidance_embeds=True),
        "flux2": partial(save_tiny_flux2, is_distilled=False),
    }
    if name in save:
        save[name](tmp_path)
    open_backbone = {"flux": FluxBackbone, "flux2": Flux2Backbone}
    backbone = open_backbone[name](str(tmp_path), **OPTIONS) if name in save else tiny_backbone(tiny_folder)
    transformer = backbone.load()
    lists = [module for path, module in transformer.named_children() if path.endswith("transformer_blocks")]
    blocks = [block for blocks in lists for block in blocks]
    assert len(lists) == kinds and len({type(block) for block in blocks}) == kinds
    shard(transformer, Sharding(init_device_mesh("cpu", (1,))), backbone.block_classes, lambda module: None)
    assert [type(block) for block in blocks if not isinstance(block, FSDPModule)] == []


def test_weights_come_block_by_block_each_before_it_is_sharded(process_group):
    brought = []

    def bring(module):
        brought.append((type(module), sum(isinstance(parameter, DTensor) for parameter in module.parameters())))

    sharded(bring)
    assert brought == [(Block, 0)] * 4 + [(nn.Sequential, 8)]
