"""Whole training steps on the fake device, by the run's own trainer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from rtdmd_lightning.data.rollout import Rollout, Scores, collect
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.explorer import Explorer
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.fake_device import move_trainer, unfaked


def train_on_fake_device(module: FewStepModule, trainer: Trainer) -> None:
    """As many steps as the trainer has, every prompt ""; inside `faked`, with a trainer of one CPU."""
    if isinstance(module, ACDMDModule):
        module.draw_updates = unfaked(module.draw_updates)  # type: ignore[method-assign]
    if isinstance(module, RTDMDModule):
        module.explore = partial(explore, module.explore, module.batch_size)  # type: ignore[assignment]
    count = module.batch_size * module.batches_per_step
    batch = PromptBatch([""] * count, [{}] * count, list(range(count)))
    move_trainer(trainer)
    trainer.fit(module, train_dataloaders=DataLoader([batch] * trainer.max_steps, batch_size=None))  # type: ignore[arg-type]


def explore(
    explorer: Explorer, size: int, batch: PromptBatch, epoch: int, chosen: Sequence[int]
) -> tuple[list[Rollout], Scores]:
    """An epoch's rollouts in batches of `size`, scored. Every sample has an advantage: without numbers none is computed."""
    batches = [batch[start : start + size] for start in range(0, len(batch.prompts), size)]
    rollouts = collect(batches, partial(explorer.sample, epoch=epoch, chosen=chosen), explorer.score)
    return [replace(rollout, advantages=torch.ones(len(rollout))) for rollout in rollouts], rollouts[0].rewards
