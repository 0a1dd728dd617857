"""Stage 2 on a tiny random pipeline: a random cold start, a differentiable reward, a config."""

from pathlib import Path

import torch
from torch import Tensor

from rtdmd_lightning.callbacks.export import write_adapter
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings, adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE
from tests.support.tiny import (
    CHECKPOINTS,
    OPTIMIZERS,
    REPOSITORY,
    backbone_config,
    move_adapters,
    tiny_backbone,
    tiny_module,
    write_yaml,
)


class Redness(Reward):
    """Red less green: it has a gradient, and every image its own. As in a network, its last operation keeps a tensor for that."""

    name = "redness"
    differentiable = True

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return (images[:, 0] - images[:, 1]).mean(dim=(1, 2)).tanh()


class RednessOfCircles(Redness):
    """The same for every image of a prompt that names no circle."""

    name = "redness_of_circles"

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        circles = torch.tensor([float("circle" in prompt) for prompt in prompts])
        return circles * super().score(images, prompts, metadata) + 0.1 * (1 - circles)


class Contrast(Reward):
    """The pixels' spread, without a gradient."""

    name = "contrast"
    differentiable = False

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return images.detach().flatten(1).std(dim=1)


def save_cold_start(pipeline: Path, folder: Path) -> Path:
    """The files of a stage 1 that moved its adapters at random."""
    return save_cold_start_of(tiny_module(pipeline), folder)


def save_cold_start_of(module: FewStepModule, folder: Path) -> Path:
    """The files of a stage 1 that ended with this module."""
    write_adapter(adapter_state_dict(module.roles.base_of(EMA), EMA), folder, module.backbone, module.lora)
    torch.save(adapter_state_dict(module.roles.base_of(FAKE_SCORE), FAKE_SCORE), folder / FAKE_SCORE_FILE)
    return folder


def tiny_rtdmd_module(pipeline: Path, cold_start: Path, **options) -> RTDMDModule:
    """A configured module, its fresh adapters moved off zero so that no role is another's."""
    settings = {
        "batch_size": 4,
        "guidance_scale": (3.0, 3.0),
        "rewards": RewardMixture([Redness(), Contrast()], {"redness": 1.0, "contrast": 1.0}, ["redness"]),
        "lora": LoraSettings(rank=4, alpha=8),
        "images_per_prompt": 4,
        "micro_batches": 4,
    }
    module = RTDMDModule(tiny_backbone(pipeline), cold_start=str(cold_start), **settings | options)
    module.configure_model()
    move_adapters(module)
    return module


def write_rtdmd_config(
    folder: Path, pipeline: Path, cold_start: Path, checkpoint_every: int = 1, callbacks: dict | None = None, **model
) -> Path:
    """A config of a few fast epochs, built on the shipped defaults: 4 micro-batches of 4, 4 images a prompt."""
    config = {
        "defaults": [str(REPOSITORY / "configs/rtdmd/defaults.yaml")],
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "enable_progress_bar": False,
        },
        "run_dir": str(folder / "runs/run"),
        "callbacks": dict.fromkeys(("progress", "evaluation", "alarm", "best"))
        | {"last": {"init_args": CHECKPOINTS | {"every_n_train_steps": checkpoint_every}}}
        | (callbacks or {}),
        "data": {"prompts": "shapes:train"},
        "model": {
            "init_args": {
                "backbone": backbone_config(pipeline, {}),
                "cold_start": str(cold_start),
                "batch_size": 4,
                "micro_batches": 4,
                "images_per_prompt": 4,
                "guidance_scale": [3.0, 3.0],
                "lora": {"rank": 4, "alpha": 8, "init_std": None},
                "rewards": {
                    "rewards": [
                        {"class_path": "tests.support.tiny_rtdmd.Redness"},
                        {"class_path": "tests.support.tiny_rtdmd.Contrast"},
                    ],
                    "weights": {"redness": 1.0, "contrast": 1.0},
                    "back_propagated": ["redness"],
                },
            }
            | OPTIMIZERS
            | model
        },
    }
    return write_yaml(folder, config)
