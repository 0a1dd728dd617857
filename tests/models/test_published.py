"""The published models at their real shapes, on the meta device."""

import pytest
import torch
from torch import nn

from rtdmd_lightning.models.published import NAMES, published
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.stacked import StackedLinear

# Parameters of the transformer; adapted linear layers; adapter parameters at rank 32, `32 * (inputs + outputs)` each.
ATTENTION = 32 * 2 * 1536  # SD3's layers are all square
FLUX = 32 * 2 * 3072


def klein(width: int, double: int, single: int) -> int:
    """In a double block 8 square layers; in a single block one to q, k, v and both halves of the MLP, and one back."""
    mlp = 3 * width
    return 32 * (double * 8 * 2 * width + single * ((width + 3 * width + 2 * mlp) + (width + mlp + width)))


EXPECTED = {
    "sd3_medium": (2_028_328_000, 24 * 8 - 1, (24 * 8 - 1) * ATTENTION),
    "sd35_medium": (2_243_171_520, 24 * 8 - 1, 18_776_064),
    "flux1_dev": (11_901_408_320, 19 * 8 + 38 * 3, (19 * 8 + 38 * 3) * FLUX),
    "flux2_klein_4b": (3_875_544_576, 5 * 8 + 20 * 2, klein(3072, 5, 20)),
    "flux2_klein_9b": (9_078_581_248, 8 * 8 + 24 * 2, klein(4096, 8, 24)),
}


@pytest.fixture(scope="module", params=NAMES)
def adapted(request):
    """A name, its family, its bare transformer's parameter count, and the transformer with one adapter."""
    model = published(request.param)
    transformer = model.meta_transformer()
    bare = sum(parameter.numel() for parameter in transformer.parameters())
    with torch.device("meta"):
        lora.add_adapter(transformer, "generator", lora.LoraSettings(), model.family.lora_targets)
    return request.param, model.family, bare, transformer


def modules_with_adapters(transformer):
    return {path.split(".lora_")[0] for path in lora.adapter_parameters(transformer, "generator")}


def test_every_published_model_is_here():
    assert set(NAMES) == set(EXPECTED)


def test_parameter_and_adapter_counts(adapted):
    name, _, bare, transformer = adapted
    parameters = lora.adapter_parameters(transformer, "generator")
    total = sum(parameter.numel() for parameter in parameters.values())
    assert (bare, len(modules_with_adapters(transformer)), total) == EXPECTED[name]
    assert len(parameters) == 2 * EXPECTED[name][1]
    assert all(parameter.is_meta for parameter in transformer.parameters())


def test_adapter_keys_are_the_published_files(adapted):
    _, _, _, transformer = adapted
    linear = {path for path, module in transformer.named_modules() if isinstance(module, StackedLinear)}
    keys = {path.replace(".generator.", ".default.") for path in lora.adapter_parameters(transformer, "generator")}
    assert keys == {f"{path}.lora_{half}.default.weight" for path in linear for half in "AB"}


def test_attention_is_adapted_and_nothing_else(adapted):
    """SD3: `attn`, not `attn2`, and no `to_add_out` in the last block; FLUX.2: the single blocks' fused layers too."""
    name, _, _, transformer = adapted
    paths = modules_with_adapters(transformer)
    wanted = {
        path
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear | StackedLinear)
        and ".attn." in path
        and ".lora_" not in path
        and not path.endswith("base_layer")
    }
    assert paths == wanted
    if name.startswith("sd3"):
        assert "transformer_blocks.22.attn.to_add_out" in paths
        assert "transformer_blocks.23.attn.to_add_out" not in paths
    if name == "sd35_medium":
        dual = {path for path, _ in transformer.named_modules() if path.endswith("attn2")}
        assert dual == {f"transformer_blocks.{block}.attn2" for block in range(13)}
    if name.startswith("flux2"):
        assert "single_transformer_blocks.19.attn.to_out" in paths and "transformer_blocks.4.attn.to_out.0" in paths


def test_the_sharded_blocks_hold_all_repeated_layers(adapted):
    """FSDP2 gathers a block at a time: what is in none of them, gathered with the root, must be the small rest."""
    name, family, bare, transformer = adapted
    blocks = [module for module in transformer.modules() if isinstance(module, family.block_classes)]
    lists = [module for module in transformer.children() if isinstance(module, nn.ModuleList)]
    assert [id(block) for block in blocks] == [id(block) for modules in lists for block in modules]
    in_blocks = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    adapters = EXPECTED[name][2]
    assert all(
        path.startswith(("transformer_blocks.", "single_transformer_blocks."))
        for path in lora.adapter_parameters(transformer, "generator")
    )
    assert in_blocks - adapters > 0.9 * bare
