"""A published backbone without weights: two bases where the generator has its own, in the blocks that are wanted."""

from collections import Counter

import pytest

from rtdmd_lightning.models import Flux2Backbone
from rtdmd_lightning.models.published import published
from rtdmd_lightning.planning.blocks import few, kinds
from rtdmd_lightning.planning.fake_device import faked
from rtdmd_lightning.planning.parts import pipeline_configs
from rtdmd_lightning.planning.weightless import Weightless, block_kinds, weightless

KLEIN = published("flux2_klein_4b")


@pytest.mark.parametrize("own", [KLEIN.generator_pretrained, None])
def test_a_backbone_without_weights(own):
    backbone = Flux2Backbone(KLEIN.pretrained, 512, generator_pretrained=own)
    configs = pipeline_configs(backbone)
    blocks = block_kinds(backbone, configs)
    assert sorted(blocks.values()) == [5, 20]
    least: Counter = few(blocks)[0]
    with faked():
        planned = weightless(backbone, Weightless(Flux2Backbone, configs, least))
        transformer, generator = planned.load(), planned.load_generator_base()
        assert kinds(transformer, Flux2Backbone.block_classes) == least
        assert {parameter.dtype for parameter in transformer.parameters()} == {planned.dtype}
        assert {parameter.dtype for parameter in planned.loaded.vae.parameters()} == {planned.vae_dtype}
        assert (generator is not None) == (own is not None)
        if generator is not None:
            assert generator is not transformer and kinds(generator, Flux2Backbone.block_classes) == least
    assert backbone.pipeline is None  # the one that was given is as it was
