"""Scoring the student on held-out prompts while it trains."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import MeanMetric
from torchvision.utils import make_grid, save_image

from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.errors import UserError
from rtdmd_lightning.modules.core import DistillationModule
from rtdmd_lightning.rewards.base import Reward


class RewardEvalCallback(L.Callback):
    """Every `every_n_updates` generator updates: the EMA student draws held-out prompts, rewards score them.

    Logged through torchmetrics, over all ranks: `eval/REWARD` and `eval/REWARD/TAG`; `ModelCheckpoint(monitor="eval/REWARD")`
    sees them. `grid` of the images, the same prompts and noise every time, go to TensorBoard and to
    `LOG_DIR/images/step_N.png`; the scores, with the seconds spent training so far, to `LOG_DIR/eval.jsonl`.

    Args:
        prompts: held-out prompts, see `load_prompts`.
        rewards: what to score with; their names must differ.
        every_n_updates: generator updates between two evaluations; one more comes at the end.
        batch_size: images drawn at once on each process.
        grid: how many images the grid shows.
        seed: of the images' noise.
    """

    def __init__(
        self,
        prompts: str,
        rewards: list[Reward],
        every_n_updates: int,
        batch_size: int = 60,
        grid: int = 24,
        seed: int = 1234,
    ) -> None:
        if len({reward.name for reward in rewards}) != len(rewards):
            raise UserError(f"reward names must differ: {[reward.name for reward in rewards]}")
        self.metadata = load_prompts(prompts)
        self.rewards = rewards
        self.every_n_updates = every_n_updates
        self.batch_size = batch_size
        self.grid = min(grid, len(self.metadata))
        self.seed = seed
        self.training_seconds = 0.0
        self._batch_started = 0.0
        self._last_evaluated = -1

    def state_dict(self) -> dict[str, Any]:
        return {"training_seconds": self.training_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_seconds = state_dict["training_seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for reward in self.rewards:
            reward.to(pl_module.device)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.training_seconds += time.perf_counter() - self._batch_started
        if trainer.global_step % self.every_n_updates == 0:
            pl_module.log_dict(self.evaluate(trainer, pl_module))

    def on_train_end(self, trainer, pl_module) -> None:
        if self._last_evaluated != trainer.global_step:
            scores = self.evaluate(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({name: float(score) for name, score in scores.items()}, trainer.global_step)

    def evaluate(self, trainer: L.Trainer, pl_module: DistillationModule) -> dict[str, Tensor]:
        """Draw and score; the mean of every metric over all ranks."""
        self._last_evaluated = trainer.global_step
        metrics: dict[str, MeanMetric] = {}
        for name in self.metric_names():
            metrics[name] = MeanMetric(sync_on_compute=True).to(pl_module.device)
        for indices in self.local_batches(trainer.global_rank, trainer.world_size):
            drawn = indices or [0]  # a rank with nothing left draws along: sharded forward passes need every rank
            images = pl_module.generate([self.metadata[i]["prompt"] for i in drawn], drawn, seed=self.seed)
            metadata = [self.metadata[index] for index in indices]
            if not metadata:
                continue
            prompts = [entry["prompt"] for entry in metadata]
            for reward in self.rewards:
                values = reward.score(images, prompts, metadata)
                for value, entry in zip(values, metadata, strict=True):
                    metrics[f"eval/{reward.name}"].update(value)
                    if "tag" in entry:
                        metrics[f"eval/{reward.name}/{entry['tag']}"].update(value)
        scores = {name: metric.compute() for name, metric in metrics.items()}
        picture = self.draw_grid(pl_module)
        log_dir = trainer.log_dir  # a broadcast: every rank must ask
        if trainer.is_global_zero and log_dir is not None:
            self.write(trainer, Path(log_dir), scores, picture)
        return scores

    def metric_names(self) -> list[str]:
        tags = dict.fromkeys(entry["tag"] for entry in self.metadata if "tag" in entry)
        return [
            f"eval/{reward.name}{suffix}" for reward in self.rewards for suffix in ("", *(f"/{tag}" for tag in tags))
        ]

    def local_batches(self, rank: int, world_size: int) -> list[list[int]]:
        """This rank's prompts; every rank gets equally many batches, if need be an empty last one."""
        stride = self.batch_size * world_size
        total = len(self.metadata)
        starts = range(0, total, stride)
        return [
            list(range(min(start + rank * self.batch_size, total), min(start + (rank + 1) * self.batch_size, total)))
            for start in starts
        ]

    def draw_grid(self, pl_module: DistillationModule) -> Tensor:
        spaced = torch.linspace(0, len(self.metadata) - 1, self.grid).long().tolist()
        images = pl_module.generate([self.metadata[index]["prompt"] for index in spaced], spaced, seed=self.seed)
        return make_grid(images.cpu(), nrow=8)

    def write(self, trainer: L.Trainer, log_dir: Path, scores: dict[str, Tensor], picture: Tensor) -> None:
        row = {"step": trainer.global_step, "training_seconds": round(self.training_seconds, 2)}
        row |= {name: round(float(score), 5) for name, score in scores.items()}
        path = log_dir / "images" / f"step_{trainer.global_step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (log_dir / "eval.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        save_image(picture, path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("eval/images", picture, trainer.global_step)
