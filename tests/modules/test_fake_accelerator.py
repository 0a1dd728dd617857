"""Whole training steps of all families and both stages on an accelerator that is not there.

Its tensors have no numbers, but a device: a tensor of the CPU among them is an error, as it is on a GPU.
"""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.blocks import few
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE
from rtdmd_lightning.planning.fake_module import fake_module, known_shapes
from rtdmd_lightning.planning.fake_training import train_on_fake_device
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.tiny import save_tiny_pipeline, tiny_backbone
from tests.support.tiny_backbones import save_all, tiny_backbones

pytestmark = pytest.mark.slow
FAMILIES = ("sd3", "flux", "flux2_two_bases")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    save_tiny_pipeline(folder / "sd3")
    return save_all(folder) | {"sd3": folder / "sd3"}


def described(stage: int, family: str, folders) -> FewStepModule:
    backbone = tiny_backbone(folders["sd3"]) if family == "sd3" else tiny_backbones(folders)[family]
    backbone.gradient_checkpointing = True
    shared = {"batch_size": 2, "guidance_scale": (3.0, 3.0), "lora": LoraSettings(rank=4, alpha=8)}
    if stage == 1:
        return ACDMDModule(backbone, fake_update_ratio=1, **shared)
    rewards = RewardMixture([ClipScoreReward()], {"clipscore": 1.0})
    return RTDMDModule(backbone, rewards=rewards, cold_start="", images_per_prompt=2, micro_batches=1, **shared)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_step_leaves_the_device_nowhere(stage, family, folders):
    module = described(stage, family, folders)
    configs, blocks = known_shapes(module)
    places: set[torch.device] = set()

    def look(trainer: Trainer, trained: FewStepModule) -> None:
        for role in (GENERATOR, FAKE_SCORE, EMA):
            places.update(parameter.device for parameter in trained.roles.parameters_of(role))

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [LambdaCallback(on_train_end=look)]
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=1, precision="bf16-mixed", callbacks=callbacks, **quiet)
    with fake_module(module, configs, few(blocks)[0]) as fake:
        train_on_fake_device(fake, trainer)
    assert (trainer.global_step, places) == (1, {FAKE_DEVICE})


def test_a_tensor_that_was_forgotten_on_the_cpu_is_noticed(folders, monkeypatch):
    module = described(1, "sd3", folders)
    configs, blocks = known_shapes(module)
    monkeypatch.setattr(SampleRandom, "normal", lambda random, purpose, shape: torch.zeros(len(random.indices), *shape))
    with fake_module(module, configs, few(blocks)[0]) as fake:
        trainer = Trainer(accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False)
        with pytest.raises(RuntimeError, match="device"):
            train_on_fake_device(fake, trainer)
