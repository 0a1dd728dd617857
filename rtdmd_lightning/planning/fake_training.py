"""Whole training steps on the fake device, by the run's own trainer."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.scoring import Scorer, Scores, Scoring
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
        score_at_once(module.explore)
        module.check_ratio.settings = replace(module.policy, ratio_check="off")  # there are no numbers
    count = module.batch_size * module.batches_per_step
    batch = PromptBatch([""] * count, [{}] * count, list(range(count)))
    move_trainer(trainer)
    trainer.fit(module, train_dataloaders=DataLoader([batch] * trainer.max_steps, batch_size=None))  # type: ignore[arg-type]


def score_at_once(explorer: Explorer) -> None:
    """In this thread and on no stream. Every sample gets an advantage: without numbers none is computed."""

    def with_advantages(rollouts: Sequence[Rollout], scoring: Scoring) -> tuple[list[Rollout], Scores]:
        _, scores = scoring.results()
        return [replace(rollout, advantages=torch.ones(len(rollout))) for rollout in rollouts], scores

    explorer._scorer = Scorer(explorer.score, torch.device("cpu"))
    explorer.with_advantages = with_advantages  # type: ignore[method-assign]
