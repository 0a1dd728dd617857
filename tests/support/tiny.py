"""Tiny random models of the real classes, and short runs on them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from lightning import Callback, Trainer

from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.models import SD3Backbone
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.pretraining.vae import build_vae
from rtdmd_lightning.roles.lora import LoraSettings, adapter_parameters
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.shapes.text import JOINT_WIDTH, build_silent_t5, build_text_encoder, build_tokenizer

REPOSITORY = Path(__file__).parents[2]
BACKBONE_OPTIONS = {"resolution": 32, "use_t5": False, "max_sequence_length": 1, "dtype": "float32"}
# A large eps makes Adam's first steps proportional to the gradient: rounding cannot flip a step's sign.
OPTIMIZERS = {role: {"learning_rate": 1.0e-2, "eps": 1.0e-2} for role in ("generator_optimizer", "fake_optimizer")}
CHECKPOINTS = {"save_last": True, "save_top_k": -1}
STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp_find_unused_parameters_true"],
    "fsdp2": [
        f"--config={REPOSITORY / 'configs/parts/fsdp2.yaml'}",
        "--trainer.strategy.shard_size=2",
    ],
}


def save_tiny_pipeline(folder: Path) -> None:
    """SD3 with one dual-attention block, as SD3.5-Medium has: `attn` is adapted there, `attn2` is not."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=JOINT_WIDTH,
        pooled_projection_dim=JOINT_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    vae = build_vae(channels=(8, 8, 8), norm_num_groups=4)
    vae.register_to_config(shift_factor=0.1, scaling_factor=1.5)
    tokenizer = build_tokenizer()
    text_encoder_3, tokenizer_3 = build_silent_t5()
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(folder)


def tiny_backbone(folder: Path, **options) -> SD3Backbone:
    return SD3Backbone(str(folder), **BACKBONE_OPTIONS | options)


def tiny_module(folder: Path, backbone_options: dict | None = None, **options) -> ACDMDModule:
    """A configured module, its adapters moved off zero so that the roles differ."""
    settings = {"batch_size": 4, "guidance_scale": (3.0, 3.0), "lora": LoraSettings(rank=4, alpha=8)}
    module = ACDMDModule(tiny_backbone(folder, **backbone_options or {}), **settings | options)
    module.configure_model()
    move_adapters(module)
    return module


def move_adapters(module: FewStepModule) -> None:
    """Off zero, each in its own direction."""
    generator = torch.Generator().manual_seed(1)
    for adapter in (GENERATOR, FAKE_SCORE, EMA):
        if adapter not in module.roles.own:
            continue
        for path, parameter in adapter_parameters(module.roles.transformer, adapter).items():
            if "lora_B" in path:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def train(module: FewStepModule, steps: int = 1, callbacks: Sequence[Callback] = (), **options) -> Trainer:
    """Some training steps in this process, on the toy world's prompts."""
    data = RolloutDataModule("shapes:train", module.batch_size, module.batches_per_step, module.images_per_prompt)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=steps, callbacks=list(callbacks), **quiet, **options)
    trainer.fit(module, data)
    return trainer


def write_config(folder: Path, pipeline: Path, checkpoint_every: int = 1, **model) -> Path:
    """A config of a few fast cycles on a tiny pipeline, built on the shipped defaults."""
    shapes = {"class_path": "rtdmd_lightning.rewards.shapes.ShapesReward"}
    callbacks = {
        "progress": None,
        "last": {"init_args": CHECKPOINTS | {"every_n_train_steps": checkpoint_every}},
        "evaluation": {
            "class_path": "rtdmd_lightning.callbacks.RewardEvalCallback",
            "init_args": {
                "prompts": "shapes:held_out:2",
                "rewards": [shapes],
                "every_n_updates": 2,
                "batch_size": 5,
                "grid": 4,
            },
        },
    }
    config = {
        "defaults": [str(REPOSITORY / "configs/cold_start/defaults.yaml")],
        "run_dir": str(folder / "runs/run"),
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "enable_progress_bar": False,
        },
        "callbacks": callbacks,
        "data": {"prompts": "shapes:train"},
        "model": {
            "init_args": {
                "backbone": backbone_config(pipeline, {}),
                "batch_size": 4,
                "guidance_scale": [3.0, 3.0],
                "lora": {"rank": 4, "alpha": 8},
                "fake_update_ratio": 2,
            }
            | OPTIMIZERS
            | model
        },
    }
    return write_yaml(folder, config)


def backbone_config(pipeline: Path, options: dict) -> dict:
    """A tiny SD3 pipeline as it stands in a config."""
    return {
        "class_path": "rtdmd_lightning.models.SD3Backbone",
        "init_args": {"pretrained": str(pipeline), **BACKBONE_OPTIONS, **options},
    }


def write_yaml(folder: Path, config: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(*arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    """`python -m rtdmd_lightning.fit ARGUMENTS` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-m", "rtdmd_lightning.fit", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        **options,
    )
    assert not check or finished.returncode == 0, finished.stderr[-3000:]
    return finished


def load_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "runs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)


class KillDuringStep(Callback):
    """SIGKILL this process inside a training step: after its fake-score updates, before its generator's."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class SignalBeforeTraining(Callback):
    """Sends a process a signal before its models are read; or when they are, before the first update."""

    def __init__(self, name: str, rank: int = 0, loaded: bool = False) -> None:
        self.signal, self.rank, self.loaded = signal.Signals[name], rank, loaded

    def setup(self, trainer, pl_module, stage: str) -> None:
        if not self.loaded:
            os.kill(os.getpid(), self.signal)

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signal)


class SignalDuringStep(Callback):
    """Sends a process a signal inside a training step, before its generator's update; or in the evaluation after it."""

    def __init__(self, step: int, name: str = "SIGTERM", rank: int = 0, evaluating: bool = False) -> None:
        self.step, self.signal, self.rank, self.evaluating = step, signal.Signals[name], rank, evaluating

    def setup(self, trainer, pl_module, stage: str) -> None:
        if self.evaluating:
            generate = pl_module.generate

            def interrupted(*arguments, **options):
                self.send(trainer, self.step + 1)
                return generate(*arguments, **options)

            pl_module.generate = interrupted

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not self.evaluating:
            self.send(trainer, self.step)

    def send(self, trainer, step: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (step, self.rank):
            os.kill(os.getpid(), self.signal)
