"""`model.initial_adapter`: a run goes on from any format, at its own configuration's rank and alpha or not at all."""

import pytest
import torch

from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import writing
from rtdmd_lightning.roles.adapter import SCALE_KEY
from rtdmd_lightning.roles.lora import LoraSettings, adapter_state_dict
from rtdmd_lightning.roles.reading import from_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import tiny_backbone, tiny_module

LORA = LoraSettings(rank=4, alpha=16)  # a scale of 4: neither the method's 2 nor a diffusers file's 1


@pytest.fixture(scope="module")
def source(tiny_folder):
    return tiny_module(tiny_folder, lora=LORA)


def written(module, to, folder):
    adapter = from_state_dict(adapter_state_dict(module.roles.transformer, EMA), module.lora.scale, "a test")
    if to == "published":
        writing.write_published(adapter, folder)
    elif to == "peft":
        writing.write_peft(adapter, folder, "tiny")
    elif to == "diffusers":
        writing.write_diffusers(adapter, folder, module.backbone.pipeline_class)
    else:
        torch.save({"state_dict": module.state_dict(), SCALE_KEY: module.lora.scale}, folder / "last.ckpt")
        return folder / "last.ckpt"
    return folder


def started(backbone, path, lora=LORA):
    module = ACDMDModule(backbone, 4, (3.0, 3.0), lora=lora, initial_adapter=str(path))
    module.configure_model()
    return module


@pytest.mark.parametrize("to", ["published", "peft", "diffusers", "checkpoint"])
def test_generator_and_average_start_where_the_file_ends(to, source, tiny_folder, tmp_path):
    module = started(tiny_backbone(tiny_folder), written(source, to, tmp_path))
    expected = adapter_state_dict(source.roles.transformer, EMA)
    for role in (GENERATOR, EMA):
        state = adapter_state_dict(module.roles.transformer, role)
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)
    fake_score = adapter_state_dict(module.roles.transformer, FAKE_SCORE)
    assert all(value.abs().max() == 0 for key, value in fake_score.items() if "lora_B" in key)
    images = [one.generate(["a red circle"], [0], seed=0) for one in (source, module)]
    assert torch.equal(*images)


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, alpha=8), LoraSettings(rank=8, alpha=32)])
@pytest.mark.parametrize("to", ["peft", "checkpoint"])
def test_another_rank_or_alpha_is_refused_before_the_base_is_read(lora, to, source, tmp_path):
    path = written(source, to, tmp_path)
    message = rf"rank 4 and alpha 16 .* rank {lora.rank} and alpha {lora.alpha}: set model\.lora"
    with pytest.raises(UserError, match=message):
        started(tiny_backbone(tmp_path / "nowhere"), path, lora)


def test_a_published_file_that_tells_no_scale_has_the_methods(source, tiny_folder, tmp_path):
    path = tmp_path / "generator_ema.pt"
    torch.save(dict(adapter_state_dict(source.roles.transformer, EMA)), path)
    started(tiny_backbone(tiny_folder), path, LoraSettings(rank=4, alpha=8))
    with pytest.raises(UserError, match="rank 4 and alpha 8 "):
        started(tiny_backbone(tiny_folder), path)
