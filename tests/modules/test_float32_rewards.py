"""Under bf16-mixed the generator computes in bfloat16, decoder and reward towers in float32, where images are scored and where
rewards are back-propagated."""

from collections import Counter

import pytest
import torch
from lightning import Trainer
from torch import nn

from rtdmd_lightning.data.stream import RolloutDataModule
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.roles import GENERATOR
from tests.support.tiny import REPOSITORY
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module

pytestmark = pytest.mark.slow


class Dtypes:
    """What goes into and out of the linear maps and convolutions of a network, counted by dtype and by whether gradients are
    recorded."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: Counter = Counter()
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_hook(self.note)

    def note(self, layer, inputs, output) -> None:
        for tensor in (*inputs, output):
            self.seen[tensor.dtype, torch.is_grad_enabled()] += 1


@pytest.fixture(scope="module")
def seen(tiny_folder, tmp_path_factory):
    """Of the parts of one epoch."""
    reward = ClipScoreReward(str(REPOSITORY / "checkpoints" / "tiny-clip"))
    reward.to(torch.device("cpu"))
    module = tiny_rtdmd_module(
        tiny_folder,
        save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start")),
        rewards=RewardMixture([reward], {"clipscore": 1.0}),
        micro_batches=2,
    )
    clip, vae = reward._clip.model, module.backbone.loaded.vae
    parts = {
        "picture tower": clip.vision_model,
        "text tower": clip.text_model,
        "decoder": vae.decoder,
        "generator": module.roles.base_of(GENERATOR),
    }
    noted = {name: Dtypes(network) for name, network in parts.items()}
    data = RolloutDataModule("shapes:train", module.batch_size, module.batches_per_step, module.images_per_prompt)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(accelerator="cpu", devices=1, max_steps=1, precision="bf16-mixed", **quiet).fit(module, data)
    return {name: dtypes.seen for name, dtypes in noted.items()}


@pytest.mark.parametrize("part", ["picture tower", "decoder"])
def test_towers_and_decoder_see_float32_alone(seen, part):
    assert seen[part].keys() == {(torch.float32, False), (torch.float32, True)}


def test_so_does_the_text_tower(seen):
    assert seen["text tower"].keys() == {(torch.float32, False)}


def test_the_generator_does_not(seen):
    assert (torch.bfloat16, True) in seen["generator"] and (torch.bfloat16, False) in seen["generator"]
